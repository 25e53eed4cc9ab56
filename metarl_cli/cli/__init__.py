"""What is typed: one file a command, composing with Hydra, completion."""

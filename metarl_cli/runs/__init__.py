"""A run on disk: its folder, checkpoints, tracking, the training loop."""

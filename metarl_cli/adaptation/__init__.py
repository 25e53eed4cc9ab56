"""The three ways to adapt to a task: by gradient steps, by inference from a support, and by a memory."""

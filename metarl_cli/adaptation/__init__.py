"""The two ways to adapt to a task: by gradient steps, and by a memory."""

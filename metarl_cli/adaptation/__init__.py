"""The four ways to adapt to a task: by gradient steps, by inference from a support, by demonstrations, and by a memory."""

"""The two ways to adapt: by gradient, by memory."""

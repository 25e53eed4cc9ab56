"""Functions of their weights: Q-networks, memories, distributions, optimisers."""

"""Networks as pure functions of their weights: Q-networks, memories, distributions, optimisers."""

"""Populations: what varies, how it learns, how the population moves."""

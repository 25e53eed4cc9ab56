"""Rollouts, exploration, replay, returns."""

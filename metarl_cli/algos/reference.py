"""The base of algorithms with nothing to train: ``train_step`` does nothing and the checkpoint is empty."""

from __future__ import annotations

from metarl_cli.interfaces import Algorithm


class Reference(Algorithm):
    """A strategy that is known already; it adapts by what it counts within a trial."""

    learns = False
    uses_learner = False
    adapts_by = "memory"

    def train_step(self) -> dict[str, float]:
        """Train nothing."""
        return {}

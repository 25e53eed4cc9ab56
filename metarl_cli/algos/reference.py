"""The base of algorithms with nothing to train: ``train_step`` does nothing and the checkpoint is empty."""

from __future__ import annotations

from typing import ClassVar, Literal

from typing_extensions import override

from metarl_cli.interfaces import Algorithm, State


class Reference(Algorithm):
    """A strategy with nothing to train; most adapt by the statistics that they keep within a trial.

    ``train_step`` does nothing, and there are no weights: a run of it is one iteration long.
    """

    learns = False
    uses_learner = False
    adapts_by: ClassVar[Literal["inference", "demonstrations", "memory"]] = "memory"

    @override
    def train_step(self) -> dict[str, float]:
        """Do nothing; returns no metrics."""
        return {}

    @override
    def weights(self) -> State:
        return {}

    @override
    def load_weights(self, state: State) -> None:
        pass

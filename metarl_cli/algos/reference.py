"""What an algorithm without anything to learn says to the commands: training passes at once, a checkpoint is empty."""

from __future__ import annotations

from metarl_cli.interfaces import State


class Reference:
    """The base of strategies that are known already."""

    learns = False
    uses_learner = False
    adapts_by = "memory"
    stochastic = False
    env_steps = 0

    def train_step(self) -> dict[str, float]:
        return {}

    def weights(self) -> State:
        return {}

    def load_weights(self, state: State) -> None:
        pass

    def state_dict(self) -> State:
        return {"weights": {}}

    def load_state_dict(self, state: State) -> None:
        pass

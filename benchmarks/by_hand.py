"""What exploration by hand is worth, beside what is learned: fixed walks, on the held-out tasks of the main table.

    python benchmarks/by_hand.py

Sparse navigation: the eight rollouts of a support sweep the square, two for each quarter; the family's rule then walks to the
mean of the places that were rewarded. Key-to-door: one episode walks out of the centre in a spiral, and nothing adapts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.cli.compose import compose_train
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.experience.rollout import collect, run_episodes
from metarl_cli.interfaces import Family, Policy, State
from metarl_cli.seeding import torch_rng

TASKS, TASKS_SEED = 100, 3041  # of benchmarks/evidence/matrix.yaml
STEPS = 20  # of a rollout of the support


class Walk(Policy):
    """Fixed actions, ``[N, T]`` in the environments of every task."""

    def __init__(self, actions: Tensor):
        self.actions = actions

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        return {"step": 0}

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        return self.actions[:, state["step"]].expand(obs.shape[:2]), {"step": state["step"] + 1}


def sweep() -> Tensor:
    """Return the actions ``[8, 20]`` of rollouts that together pass every place of the square."""
    walks = []
    for side in (1, 2):  # +x, -x
        for up, down in ((3, 4), (4, 3)):  # +y, -y
            for first in (0, 3):  # column: each rollout goes along three of them
                walk = [side] * first + [up] * 5 + [side] + [down] * 5 + [side] + [up] * 5
                walks.append(walk + [0] * (STEPS - len(walk)))
    return torch.tensor(walks)


def spiral(steps: int) -> Tensor:
    """Return the actions ``[1, steps]`` of a walk out of the centre: right, up, left, down, each pair of legs one longer."""
    legs = [move for leg in range(steps) for move in [(2, 1, 4, 3)[leg % 4]] * (leg // 2 + 1)]
    return torch.tensor([legs[:steps]])


def held_out(env: str) -> tuple[Family, dict[str, Tensor]]:
    """Return a family and its held-out tasks."""
    family = compose_train([f"env={env}"])[0].env.instance
    return family, held_out_tasks(family, "test", TASKS, TASKS_SEED)


def mean_return(family: Family, task: dict[str, Tensor], policy: Policy) -> float:
    """Return the mean return of an episode; both families are deterministic."""
    return float(run_episodes(family, task, policy, 1, torch_rng(0), torch_rng(0))[0].mean())


def main() -> None:
    """Print a line for each family."""
    family, task = held_out("navigation_2d_sparse")
    walk = Walk(sweep())
    support = collect(family.make(task, 8, torch_rng(0)), walk, walk.start(8, torch_rng(0)), STEPS, one_episode=True)
    met, rule = (support.reward > 0).flatten(1).any(1).float().mean(), family.rule(support)
    assert rule is not None
    print(
        f"sparse navigation: a sweep meets {met:.0%} of the goals, and the rule then gets {mean_return(family, task, rule):.2f}"
    )
    family, task = held_out("key_to_door")
    print(f"key-to-door: a spiral gets {mean_return(family, task, Walk(spiral(family.spec.horizon))):.2f}")


if __name__ == "__main__":
    main()

"""How far the first-order meta-gradient of MAML-DQN is the second-order one: the cosine between both, at trained weights.

    metarl train experiment=maml_dqn_cartpole run=outputs/cartpole
    metarl train experiment=maml_dqn_navigation run=outputs/navigation
    python benchmarks/first_order.py outputs/cartpole outputs/navigation

Both are means over the same minibatches of tasks and of query transitions. A cosine near 1 says that FOMAML
(``algo=fomaml_dqn``) learns what MAML learns; one near 0 that second derivatives carry all of it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from metarl_cli.algos.maml import MAML
from metarl_cli.config.models import Hardware
from metarl_cli.interfaces import Transitions
from metarl_cli.runs.run import Run
from metarl_cli.seeding import torch_rng


def batches(algo: MAML, number: int) -> list[tuple[list[Transitions], Transitions]]:
    """Collect three iterations of experience with the weights as they are; draw ``number`` minibatches of an outer update."""
    algo.iteration = algo.config.query.epsilon_iterations
    supports = [algo._collect()[0] for _ in range(3)][-1]
    rng, outer, drawn = torch_rng(0, "minibatch"), algo.config.outer, []
    for _ in range(number):
        rows = torch.randperm(algo.config.tasks, generator=rng)[: outer.tasks]
        drawn.append(([support.rows(rows) for support in supports], algo.replay.sample(rows, outer.batch, rng)))
    return drawn


def gradient(algo: MAML, order: int, drawn: list[tuple[list[Transitions], Transitions]]) -> Tensor:
    """Return the meta-gradient of the initialisation at an order of the inner step, one vector."""
    inner = algo.config.inner.model_copy(update={"order": order})
    algo.config = algo.config.model_copy(update={"inner": inner})
    parts = [torch.cat([g.flatten() for g in algo.meta_gradient(*batch)[1][: len(algo.meta["init"])]]) for batch in drawn]
    return torch.stack(parts).mean(0)


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs of maml_dqn")
    parser.add_argument("--batches", type=int, default=40, help="minibatches that the means are over")
    args = parser.parse_args()
    for path in args.runs:
        algo = Run(path, Hardware(device="cpu", threads=1, patience=60)).algorithm
        assert isinstance(algo, MAML), f"{path} is no run of maml_dqn"
        drawn = batches(algo, args.batches)
        first, second = gradient(algo, 1, drawn), gradient(algo, 2, drawn)
        cosine = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
        print(f"{path}: cosine {cosine:.3f}; norms: first order {float(first.norm()):.4f}, second {float(second.norm()):.4f}")


if __name__ == "__main__":
    main()

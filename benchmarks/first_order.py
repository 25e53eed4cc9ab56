"""How far the first-order meta-gradient of MAML-DQN is the second-order one: the cosine between both, at trained weights.

    metarl train experiment=maml_dqn_cartpole run=outputs/cartpole
    metarl train experiment=maml_dqn_navigation run=outputs/navigation
    python benchmarks/first_order.py outputs/cartpole outputs/navigation

Each line has the mean cosine over minibatches of tasks and query transitions, that of the mean gradients, and the norms of
these, at the trained weights and at fresh ones. A cosine near 1 says that FOMAML (``algo=fomaml_dqn``) learns what MAML does;
one near 0 that second derivatives carry all of it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from metarl_cli.algos.maml import MAML
from metarl_cli.config.models import Hardware
from metarl_cli.interfaces import Transitions
from metarl_cli.runs.build import build
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


def gradients(algo: MAML, order: int, drawn: list[tuple[list[Transitions], Transitions]]) -> Tensor:
    """Return the meta-gradient of the initialisation on each minibatch, at an order of the inner step, ``[B, n]``."""
    inner = algo.config.inner.model_copy(update={"order": order})
    algo.config = algo.config.model_copy(update={"inner": inner})
    number = len(algo.meta["init"])
    return torch.stack([torch.cat([g.flatten() for g in algo.meta_gradient(*batch)[1][:number]]) for batch in drawn])


def compare(algo: MAML, number: int) -> str:
    """Describe how both orders differ at the weights as they are."""
    drawn = batches(algo, number)
    first, second = gradients(algo, 1, drawn), gradients(algo, 2, drawn)
    each, mean = cosine_similarity(first, second), cosine_similarity(first.mean(0), second.mean(0), dim=0)
    norms = [float(x.mean(0).norm()) for x in (first, second)]
    return (
        f"cosine {float(each.mean()):.2f}, of the means {float(mean):.2f}; norms {norms[0]:.3g} (first order), {norms[1]:.3g}"
    )


def main() -> None:
    """Print two lines for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs of maml_dqn")
    parser.add_argument("--batches", type=int, default=120, help="minibatches")
    args = parser.parse_args()
    for path in args.runs:
        run = Run(path, Hardware(device="cpu", threads=1, patience=60))
        for weights, algo in (("trained", run.algorithm), ("fresh", build(run.config).algorithm)):
            if not isinstance(algo, MAML):
                parser.error(f"{path} is no run of maml_dqn")
            print(f"{path}, {weights} weights: {compare(algo, args.batches)}", flush=True)


if __name__ == "__main__":
    main()

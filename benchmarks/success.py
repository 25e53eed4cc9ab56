"""Success rates of saved runs, on environments that report success: Meta-World's, and those of robots that reach goals.

    python benchmarks/success.py RUN... --tasks 50

An episode is a success where ``info["success"]`` or ``info["is_success"]`` is above 0 at any of its steps, as is usual for
Meta-World (Yu and others 2019, arXiv:1910.10897). Rates are over training tasks and over test tasks, before adaptation and
after each step of it, or in each episode of a trial. Actions are greedy.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.table import Table

from metarl_cli.config.models import Hardware
from metarl_cli.experience.rollout import rollout
from metarl_cli.interfaces import Policy, Task
from metarl_cli.progress import wide_console
from metarl_cli.runs.run import Run
from metarl_cli.seeding import numpy_rng, torch_rng


class Recorder(gymnasium.Wrapper):
    """Keep whether each episode was a success."""

    def reset(self, **arguments: Any) -> Any:
        self.found = False
        return self.env.reset(**arguments)

    def step(self, action: Any) -> Any:
        answer = self.env.step(action)
        info = answer[4]
        self.found |= bool(info.get("success", info.get("is_success", 0)))
        if answer[2] or answer[3]:
            self.last = self.found
        return answer


@torch.no_grad()
def successes(run: Run, task: Task, policy: Policy, episodes: int, trial: int) -> np.ndarray:
    """Play trials of so many episodes in each task; return the rate of success of each of their episodes, ``[trial]``."""
    env = run.family.make(task, episodes, torch_rng(0, "episodes"))
    (worker,) = env.workers
    simulators = worker.simulators.envs
    for simulated in simulators:
        simulated.env = Recorder(simulated.env)
    env._begin()  # through the recorders
    found, number = np.zeros((trial, len(simulators))), np.zeros(len(simulators), int)
    for moment in rollout(env, policy, policy.start(episodes, torch_rng(0, "policy"))):
        for i in np.flatnonzero(moment.step.ended.flatten().numpy() & (number < trial)):
            found[number[i], i] = simulators[i].env.last
            number[i] += 1
        if (number == trial).all():
            break
    for simulated in simulators:
        simulated.env = simulated.env.env
    return found.mean(1)


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--tasks", type=int, default=50, help="of each split")
    parser.add_argument("--episodes", type=int, default=1, help="of each task, or trials")
    parser.add_argument(
        "--checkpoint", choices=["best", "last"], default="best", help="weights chosen on validation tasks, or last"
    )
    options = parser.parse_args()
    for path in options.runs:
        run = Run(path, Hardware(device="cpu", threads=1, patience=60), options.checkpoint)
        table = Table("tasks", "adaptation", "success", title=str(path))
        for split in ("train", "test"):
            task = run.family.sample_tasks(options.tasks, split, numpy_rng(0, "tasks", split))
            for adapted in run.algorithm.adapt(task, run.budget(None, None), torch_rng(0, split, "support")):
                rates = successes(run, task, adapted.policy, options.episodes, adapted.episodes or 1)
                for k, rate in enumerate(rates):
                    what = f"step {adapted.step}" if adapted.episodes is None else f"episode {k + 1}"
                    table.add_row(split, what, f"{rate:.0%}")
        wide_console().print(table)


if __name__ == "__main__":
    main()

"""Print the estimated and the measured memory of a few iterations and a checkpoint [bytes]; run as a process of its own."""

import gc
import json
import resource
import sys
import tempfile
from pathlib import Path

import torch
from conftest import compose_train

from metarl_cli.config.footprint import cost_of_evaluating, total_of
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.interfaces import Budget
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import build


def now() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The largest resident memory since it was last forgotten [bytes]."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(what: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    build(compose_train("hardware=cpu", "algo=dqn", "algo.tasks=1")).algorithm.train_step()  # what torch loads at first
    family, algorithm, _ = build(config := compose_train("hardware=cpu", *overrides))
    if what == "training":
        estimate = total_of(algorithm.cost_of_training())
    else:
        tasks, episodes = config.test.tasks, config.test.episodes
        estimate = cost_of_evaluating(algorithm, family, tasks, episodes, "tasks").bytes
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, even that of the parent process
    before = now()
    if what == "training":
        for _ in range(3):
            algorithm.train_step()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / "last.pt", {"algorithm": algorithm.state_dict()})
    else:
        evaluator = Evaluator(family, held_out_tasks(family, "test", tasks, 0), episodes, 0, "test")
        evaluator.curve(algorithm, Budget(config.test.steps or 0))
    print(json.dumps({"estimate": estimate, "measured": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

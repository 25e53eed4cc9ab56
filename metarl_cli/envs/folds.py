"""Cross-validation over tasks: a fixed pool of tasks in folds, of which a run holds out one.

    test          the tasks of the fold
    validation    those of the next one
    train         all others

K runs, one for each fold, test every task of the pool once. It serves any family, and any algorithm: what draws training tasks
draws them from the pool. Out-of-distribution tasks stay those of the family.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from typing_extensions import override

from metarl_cli.envs.mixins import mixed_in
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Family, Task, num_tasks
from metarl_cli.seeding import numpy_rng


class Folds(NamedTuple):
    """A pool of tasks, and the fold that is held out."""

    num: int  # K
    held_out: int  # 0 to K - 1
    pool: int  # tasks of all folds
    seed: int  # of the pool

    @property
    def size(self) -> int:
        """The tasks of a fold."""
        return self.pool // self.num


class _Folded(Family):
    """What replaces the drawing of tasks."""

    whole: Family  # without folds
    parts: dict[str, Task]  # the tasks of each split

    @override
    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        if split not in self.parts:
            return self.whole.sample_tasks(num, split, rng)
        tasks, every = self.parts[split], num_tasks(self.parts[split])
        if split != "train" and num > every:
            raise UserError(f"a fold has {every} tasks, and {num} {split} tasks are asked for; lower them or raise train.pool")
        whole = [rng.permutation(every) if split == "train" else np.arange(every) for _ in range(-(-num // every))]
        rows = torch.as_tensor(np.concatenate(whole)[:num])
        return {name: value[rows.to(value.device)] for name, value in tasks.items()}

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        return self.whole.named_task(values)  # some families name a task by the seed that it is drawn with


def folded(family: Family, folds: Folds) -> Family:
    """Return the family with tasks from a pool, in folds.

    Raises:
        ValueError: if the family has not so many tasks, or they are parts of one history.
    """
    if family.in_time:
        raise ValueError("folds would train on what comes after their test tasks, and on parts of them: tasks are cut by time")
    pool = family.sample_tasks(folds.pool, "train", numpy_rng(folds.seed, "tasks", "pool"))
    rows = torch.cat([value.reshape(folds.pool, -1).double() for value in pool.values()], 1)
    if (different := len(torch.unique(rows, dim=0))) < folds.pool:
        raise ValueError(f"train.pool={folds.pool}: {different} of these tasks are different; lower train.pool")
    of = torch.arange(folds.pool) * folds.num // folds.pool
    test, validation = of == folds.held_out, of == (folds.held_out + 1) % folds.num
    which = {"train": ~(test | validation), "validation": validation, "test": test}
    in_folds: _Folded = mixed_in(family, _Folded)
    in_folds.whole = family
    in_folds.parts = {s: {name: value[mask.to(value.device)] for name, value in pool.items()} for s, mask in which.items()}
    in_folds.finite = False  # the splits share no task
    return in_folds

"""Seeds aggregated for TensorBoard: a run for each group, with the mean over seeds and its interval along training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from metarl_cli.comparison.groups import Comparison, Group
from metarl_cli.comparison.saved import AXES, LEARNING
from metarl_cli.errors import DiskFault
from metarl_cli.evaluation.statistics import over_seeds
from metarl_cli.runs.naming import short_names

TAGS = [f"seeds/return_after{end}" for end in ("", "_low", "_high")]
LAYOUT = {"Seeds": {"validation: after, mean over seeds and 95 %": ["Margin", TAGS]}}


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the events of a comparison's groups in the place of those of an earlier report; returns their folders.

    Points are those of the run with the fewest, between which the others are interpolated.

    Raises:
        DiskFault: if they cannot be written.
    """
    try:
        for old in folder.glob("*/events.out.tfevents.*"):
            old.unlink()
        names = short_names([group.name for group in comparison.groups])
        paths = [_group(group, folder / name) for group, name in zip(comparison.groups, names, strict=True)]
        return [path for path in paths if path]
    except OSError as error:
        raise DiskFault(f"cannot write in {folder}: {error.strerror or error}") from error


def _group(group: Group, path: Path) -> Path | None:
    axis = AXES["env_steps"]
    known = [(run.learning[axis], run.learning[LEARNING]) for run in group.runs if axis in run.learning]
    if not known:
        return None
    fewest = min((x for x, _ in known), key=len)
    inside = fewest[(fewest >= max(x[0] for x, _ in known)) & (fewest <= min(x[-1] for x, _ in known))]
    values = np.stack([np.interp(inside, x, y) for x, y in known])  # [S, P]
    with SummaryWriter(str(path)) as writer:
        writer.add_custom_scalars(LAYOUT)
        for step, column in zip(inside, values.T, strict=True):
            for tag, number in zip(TAGS, over_seeds(column), strict=True):
                if np.isfinite(number):
                    writer.add_scalar(tag, number, int(step))
    return path

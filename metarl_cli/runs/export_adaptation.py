"""Export of an adaptation: its policy and its step as files, with the weights that it begins with, each checked first.

Each file is a function of ``tensor_adaptation.py``; ``contract.json`` says how to collect a support, and what goes in and out.
"""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metarl_cli.adaptation.learning import Learning, LearnsFromSupports
from metarl_cli.adaptation.support import collect_rollouts
from metarl_cli.config.models import TrainConfig
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Algorithm, Budget, Family, Params, Task, Transitions
from metarl_cli.progress import report
from metarl_cli.runs.build import Components
from metarl_cli.runs.export import (
    FORMAT,
    LEAST_EQUAL,
    OBSERVATIONS,
    TOLERANCE,
    Function,
    action_form,
    check_formats,
    encoded,
    form,
    write_files,
)
from metarl_cli.runs.provenance import now, versions
from metarl_cli.runs.tensor_adaptation import FIELDS, WEIGHTS, TracedAdaptation, adaptation_file, trace_adaptation
from metarl_cli.runs.tensor_policy import ACTION, quiet
from metarl_cli.seeding import numpy_rng, torch_rng

TASKS, STEPS = 3, 3  # that a file is checked on
RELATIVE = 1e-3  # largest difference of a weight, as a share of the largest change of one
TEXT = (
    "collect the support: so many episodes of at most so many steps, each field an array [steps, episodes, ...]. An action is "
    "uniformly random with the probability epsilon and lasts for `repeat` steps then; else it is the policy's: {acting}. "
    "`ended` marks the last step of an episode, `terminated` one that no time limit has ended, `weight` is 1 for steps and 0 "
    "for what fills the rest of the arrays, after an episode or in the place of one. Then give the step's number, from 1, the "
    "support and the weights to the adaptation; each output next.NAME is the weight NAME from then on. {fresh}"
)
ACTING = {
    "values": "the action of the greatest value",
    "logits": "drawn with probabilities in proportion to exp(logits)",
    "mean": "drawn from the normal distribution with this mean and deviation, and clipped by the environment alone",
    "before_tanh.mean": "tanh of a draw from the normal distribution with this mean and deviation, scaled to the bounds",
}


class Checked(NamedTuple):
    """The functions of a file beside the algorithm, on supports of some tasks."""

    steps: int  # of adaptation, in all
    largest_change: float  # of a weight, by the algorithm
    largest_difference: float  # of a weight
    equal: float  # share of equal actions of the adapted policies
    observations: int


def export_adaptation(components: Components, config: TrainConfig, folder: Path, formats: Sequence[str] = ()) -> dict[str, Any]:
    """Write an adaptation as files of each format, its weights and their contract; returns the contract.

    The functions are run beside the algorithm on supports of a few training tasks first; where the weights differ, nothing is
    written.

    Args:
        components: of the run, on the CPU, with its weights.
        config: of the run.
        folder: where to write; made where there is none.
        formats: ``onnx`` and ``pt2``; none: both.

    Raises:
        UserError: for an unknown format, a missing package, an adaptation that is no function of tensors, or a file whose
            weights differ from the algorithm's.
        DiskFault: if a file cannot be written.
    """
    chosen, (family, algorithm, device) = check_formats(formats), components
    if device.type != "cpu":
        raise UserError('an adaptation is exported from the CPU: load the run by metarl.load(path, device="cpu")')
    learning = _learning(algorithm)
    report("collecting supports")
    paths = [list(adapted(algorithm, learning, family, task, seed)) for seed, task in enumerate(_tasks(family))]
    report("tracing")
    traced = trace_adaptation(learning, paths[0][0][0], family.spec, family.first_action)
    contents, files = dict[str, bytes](), dict[str, dict[str, Any]]()
    for name, kind in chosen.items():
        report(f"writing and checking {kind.file}")
        act, adapt = kind.file, adaptation_file(kind.file)
        with quiet():
            own = {act: encoded(kind, traced.act, act), adapt: encoded(kind, traced.adapt, adapt)}
            checked = check(kind.decode(own[act]), kind.decode(own[adapt]), traced, paths, learning)
        refuse(checked, adapt)
        contents |= own
        files |= {file: {"format": name, **_size(content), "check": checked._asdict()} for file, content in own.items()}
    weights, arrays = io.BytesIO(), dict[str, Any]()
    arrays |= {name: value.numpy() for name, value in traced.start.items()}
    np.savez(weights, **arrays)
    contents[WEIGHTS] = weights.getvalue()
    files[WEIGHTS] = {"format": "npz", **_size(contents[WEIGHTS])}
    packages = {package: version(package) for kind in chosen.values() for package in kind.packages}
    values = contract(learning, traced, paths[0][0][0], family, config, files) | {"versions": versions() | packages}
    write_files(folder, contents, values)
    return values


def _learning(algorithm: Algorithm) -> Learning:
    """Return what an adaptation learns from supports.

    Raises:
        UserError: if that is no function of tensors.
    """
    if algorithm.adapts_by == "memory":
        raise UserError("this run adapts by the memory of its policy, which is exported with it: leave adaptation=true away")
    if algorithm.adapts_by == "nothing":
        raise UserError("this run does not adapt: leave adaptation=true away")
    learning = algorithm.learning() if isinstance(algorithm, LearnsFromSupports) else None
    if learning is None:
        raise UserError(
            "the adaptation of this algorithm, or with these settings, is not exported as a function yet; "
            "metarl adapt adapts it, and metarl export exports the adapted policy"
        )
    return learning


def _tasks(family: Family) -> list[Task]:
    """Return training tasks, one by one."""
    tasks = family.sample_tasks(TASKS, "train", numpy_rng(0, "export", "tasks"))
    return [{name: value[row : row + 1] for name, value in tasks.items()} for row in range(TASKS)]


@torch.no_grad()
def adapted(
    algorithm: Algorithm, learning: Learning, family: Family, task: Task, seed: int
) -> Iterator[tuple[Transitions, Params]]:
    """Yield the support of each step ``[1, T, N, ...]`` and what the algorithm's own adaptation makes of it ``[1, ...]``."""
    rng, same = torch_rng(seed, "export", "support"), torch.Generator()
    steps = STEPS if learning.most is None else learning.most
    path, support = algorithm.adapt(task, Budget(steps), rng), None
    before = next(path)
    for _ in range(steps):
        if support is None or learning.fresh:
            same.set_state(rng.get_state())  # the algorithm will collect the same
            support = collect_rollouts(before.policy, learning.actions, family, task, learning.support, same)
        before = next(path)
        state = before.policy.state_dict()
        yield support, {name: state.get("params", state)[name] for name in learning.start}


@torch.no_grad()
def check(
    act: Function, adapt: Function, traced: TracedAdaptation, paths: list[list[tuple[Transitions, Params]]], learning: Learning
) -> Checked:
    """Compare what the functions make of some supports, step after step, with what the algorithm has made of them."""
    change = difference = 0.0
    equal = list[np.ndarray]()
    for path in paths:
        weights = [value.numpy() for value in traced.start.values()]
        for number, (support, ours) in enumerate(path, 1):
            weights = adapt([np.array(number), *(value[0].numpy() for value in support), *weights])
            for name, value in zip(ours, weights, strict=True):
                change = max(change, float((ours[name] - learning.start[name]).abs().max()))
                difference = max(difference, float(np.abs(ours[name][0].numpy() - value).max()))
        obs = support.obs[0].flatten(0, 1)[:OBSERVATIONS]
        taken = torch.from_numpy(act([obs.numpy(), *weights])[0])
        mode = learning.act(ours, obs[None]).mode()[0]
        near = (taken - mode).abs() <= TOLERANCE if taken.is_floating_point() else taken == mode
        equal.append(near.reshape(len(obs), -1).all(1).numpy())
    same = np.concatenate(equal)
    return Checked(sum(map(len, paths)), change, difference, float(same.mean()), len(same))


def refuse(checked: Checked, file: str) -> None:
    """Judge a check.

    Raises:
        UserError: if the weights or the actions differ by more than rounding.
    """
    if not checked.largest_difference <= RELATIVE * checked.largest_change or checked.equal < LEAST_EQUAL:
        raise UserError(
            f"{file} does not adapt as the run: weights differ by up to {checked.largest_difference:g} where they change by "
            f"{checked.largest_change:g}, and {1 - checked.equal:.1%} of the actions; nothing was written",
            exit_code=1,
        )


def _size(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def contract(
    learning: Learning,
    traced: TracedAdaptation,
    support: Transitions,
    family: Family,
    config: TrainConfig,
    files: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Return what a reader of the files has to know."""
    numbers = [name for name in traced.act.outputs if name != ACTION]
    weights = [form(name, list(value.shape), value) for name, value in traced.start.items()]
    fields = [form(name, list(value.shape[1:]), value) for name, value in zip(FIELDS, support, strict=True)]
    act, kind = action_form(family.spec, family.first_action, "batch")
    distribution = learning.act(learning.start, support.obs[:, 0]).numbers()
    fresh = "Each step takes a new support, collected by the policy with the weights so far" if learning.fresh else ""
    text = TEXT.format(
        acting=ACTING[numbers[0]], fresh=fresh or "Further steps take the same support: it is collected before the first"
    )
    return {
        "format": FORMAT,
        "created": now(),
        "inputs": [form("obs", ["batch", *family.spec.obs_shape], support.obs), *weights],
        "outputs": [act, *(form(name, ["batch", *distribution[name].shape[2:]], distribution[name]) for name in numbers)],
        "action": act | kind,
        "memory": [],
        "task": {},
        "adaptation": {
            "inputs": [{"name": "step", "shape": [], "type": "int64"}, *fields, *weights],
            "outputs": [{**each, "name": f"next.{each['name']}"} for each in weights],
            "weights": WEIGHTS,
            "support": {
                "episodes": learning.support.rollouts,
                "steps": learning.support.steps,
                "epsilon": learning.support.epsilon,
                "repeat": learning.support.repeat,
                "fresh": learning.fresh,
            },
            "steps": learning.most or config.test.steps,
            "text": text,
        },
        "environment": {
            "module": config.env.name,
            "horizon": family.spec.horizon,
            "text": inspect.getdoc(config.env.module) or "",
        },
        "algorithm": {"module": config.algo.name},
        "files": dict(files),
    }

"""Export: an adapted policy as files that others serve without this package, each checked against the policy first.

Each file is the function of ``tensor_policy.py``; ``contract.json`` says what goes in, what comes out and what is fed back.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from metarl_cli.config.messages import did_you_mean, one_line
from metarl_cli.config.models import TrainConfig
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Family, Task
from metarl_cli.progress import report
from metarl_cli.runs.files import read_json, write_json, write_whole
from metarl_cli.runs.folder import read_config
from metarl_cli.runs.policy import AdaptedPolicy
from metarl_cli.runs.provenance import now, versions
from metarl_cli.runs.tensor_adaptation import WEIGHTS, Graph, adaptation_file
from metarl_cli.runs.tensor_policy import ACTION, BATCH, ENDED, OBS, REWARD, Traced, quiet, trace
from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import Continuous, Discrete, Spec

CONTRACT, FORMAT = "contract.json", 1
OBSERVATIONS = 1000  # that a file is checked on
TOLERANCE = 1e-4  # of an entry of a vector, as a share of its range: both compute in 32 bits, in another order
LEAST_EQUAL = 0.999  # share of equal numbered actions: where two are worth the same to 32 bits, rounding may decide
Function = Callable[[list[np.ndarray]], list[np.ndarray]]


class Format(NamedTuple):
    """A kind of file."""

    file: str
    packages: tuple[str, ...]  # beyond torch
    encode: Callable[[Traced | Graph], bytes]
    decode: Callable[[bytes], Function]


class Check(NamedTuple):
    """A file beside the policy, on the same observations."""

    observations: int
    equal: float  # share of equal actions; of vectors, of those within the tolerance
    first_equal: bool  # whether all first actions of a memory are equal
    largest_difference: float  # of an entry of an action


class Moment(NamedTuple):
    """What a policy was given in a rollout, and what it did."""

    obs: np.ndarray
    reward: float
    ended: bool
    fresh: bool  # whether the memory began anew
    action: int | np.ndarray


class Array(BaseModel):
    """The form of an input or an output."""

    model_config = ConfigDict(strict=True)

    name: str
    shape: list[int | str]
    type: str


class Memory(Array):
    """The form of an entry of the memory."""

    next: str
    start: Any


class Action(Array):
    """The form of the action."""

    kind: Literal["number", "vector"]
    low: int | list[float]
    high: int | list[float]


class Contract(BaseModel):
    """The form of ``contract.json``."""

    model_config = ConfigDict(strict=True)

    format: int
    inputs: list[Array]
    outputs: list[Array]
    action: Action
    memory: list[Memory]
    task: dict[str, Any]
    files: dict[str, dict[str, Any]]


def export(
    policy: AdaptedPolicy, folder: Path, formats: Sequence[str] = (), observations: int = OBSERVATIONS
) -> dict[str, Any]:
    """Write a policy as a file of each format, and their contract; returns the contract.

    Every file is run on a rollout of the policy in its own family first; where its actions differ, nothing is written.

    Args:
        policy: the policy, on the CPU.
        folder: where to write; made where there is none.
        formats: ``onnx`` and ``pt2``; none: both.
        observations: steps of the rollout.

    Raises:
        UserError: for an unknown format, a missing package, a policy that is no function of tensors, or a file whose actions
            differ from the policy's.
        DiskFault: if a file cannot be written.
    """
    chosen = check_formats(formats)
    if policy.saved["device"].type != "cpu":
        raise UserError('a policy is exported from the CPU: load it by metarl.load(path, device="cpu")')
    config = read_config(policy.saved["config"], None, "the configuration of the policy")
    report("a rollout of the policy")
    played = rollout(policy, config.env.module.Family(config.env.config, torch.device("cpu")), observations)
    report("tracing")
    traced = trace(policy, policy.spec.observation(played[0].obs, torch.device("cpu"))[None])
    contents, files = dict[str, bytes](), dict[str, dict[str, Any]]()
    for name, kind in chosen.items():
        report(f"writing and checking {kind.file}")
        with quiet():
            content = contents[kind.file] = encoded(kind, traced, kind.file)
            checked = check(kind.decode(content), traced, played, policy)
        refuse(checked, kind.file, isinstance(policy.spec.actions, Continuous))
        sizes = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        files[kind.file] = {"format": name, **sizes, "check": checked._asdict()}
    values = contract(policy, traced, config, files) | {
        "versions": versions() | {package: version(package) for kind in chosen.values() for package in kind.packages}
    }
    write_files(folder, contents, values)
    return values


def write_files(folder: Path, contents: Mapping[str, bytes], values: dict[str, Any]) -> None:
    """Write the files of an export and their contract, in the place of an earlier export.

    Raises:
        UserError: if that cannot be written, or the folder holds other files of these names.
    """
    try:
        clear(folder)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from error
    for file, content in contents.items():
        write_whole(folder / file, content)
    write_json(folder / CONTRACT, values, Contract)


def clear(folder: Path) -> None:
    """Make a folder if need be, and remove an earlier export from it.

    Raises:
        UserError: if it is a link, or holds files of these names that are no export.
    """
    if folder.is_symlink():
        raise UserError(f"refused {folder}: it is a link")
    folder.mkdir(parents=True, exist_ok=True)
    files = [kind.file for kind in FORMATS.values()]
    names = [CONTRACT, WEIGHTS, *files, *map(adaptation_file, files)]
    if there := [name for name in names if os.path.lexists(folder / name)]:
        if CONTRACT not in there:
            raise UserError(f"{folder / there[0]} is there already, and belongs to no export; choose another folder: out=DIR")
        read_json(folder / CONTRACT, Contract)
        for name in there:  # the contract first: what is left without it is no export
            (folder / name).unlink()


def encoded(kind: Format, graph: Traced | Graph, file: str) -> bytes:
    """Return a function in a format.

    Raises:
        UserError: if the format cannot express it.
    """
    try:
        return kind.encode(graph)
    except Exception as error:  # an exporter passes on whatever its converters raise
        reason = one_line(error.__cause__ or error)[:300]
        raise UserError(f"{file} cannot express this function ({type(error).__name__}: {reason})") from error


def check_formats(names: Sequence[str]) -> dict[str, Format]:
    """Return the formats by name; all, where none is named.

    Raises:
        UserError: for an unknown one, or one whose packages are not installed.
    """
    problems = []
    for name in names:
        if name not in FORMATS:
            problems.append(f"format={name}: no such format{did_you_mean(name, FORMATS) or '; known: ' + ', '.join(FORMATS)}")
    chosen = {name: kind for name, kind in FORMATS.items() if name in names or not names}
    for name, kind in chosen.items():
        if missing := [package for package in kind.packages if find_spec(package) is None]:
            others = [other for other, each in FORMATS.items() if all(map(find_spec, each.packages))]
            problems.append(
                f"format={name} needs {', '.join(missing)}: pip install {' '.join(missing)}; "
                f"without it there is format={','.join(others)}"
            )
    if problems:
        raise UserError(*problems)
    return chosen


# -- the rollout that files are checked on


def rollout(policy: AdaptedPolicy, family: Family, num: int) -> list[Moment]:
    """Return ``num`` steps of a policy in its own task, or in the nominal one where its task is an environment of a user's.

    A memory begins anew where it is full.
    """
    nominal = family.named_task({})
    task: Task = {name: torch.tensor([value]) for name, value in policy.task.items()}
    try:
        env = family.make(task if task.keys() == nominal.keys() else nominal, 1, torch_rng(0, "export", "environment"))
    except (ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"the task of this policy cannot be played: {one_line(error)}") from error
    moments, reward, ended = list[Moment](), 0.0, False
    policy.reset()
    for number in range(num):
        obs, fresh = env.obs[0, 0].numpy().copy(), number == 0
        try:
            action = policy(obs, reward, ended)
        except UserError:
            if fresh or moments[-1].fresh:
                raise
            policy.reset()
            fresh, action = True, policy(obs)
        moments.append(Moment(obs, reward, ended, fresh, action))
        with torch.no_grad():
            index = action - policy.first_action if isinstance(policy.spec.actions, Discrete) else action
            step = env.step(torch.as_tensor(index)[None, None])
        reward, ended = float(step.reward), bool(step.ended) or number == num // 2  # one end at least, for a memory to see
    policy.reset()
    return moments


def check(function: Function, traced: Traced, played: Sequence[Moment], policy: AdaptedPolicy) -> Check:
    """Compare the actions of a function with those of a rollout of the policy."""
    start, taken = [value.numpy() for value in traced.memory.values()], []
    memory = start
    for moment in played:
        if moment.fresh:
            memory = start
        inputs = [moment.obs[None]]
        if traced.memory:
            inputs += [np.array([moment.reward], np.float32), np.array([moment.ended]), *memory]
        action, *memory = function(inputs)
        taken.append(action[0])
    ours = np.array([moment.action for moment in played], float)
    difference = np.abs(ours - np.array(taken, float))
    if not traced.memory:  # for any number of observations at once, too
        whole, *_ = function([np.stack([moment.obs for moment in played])])
        difference = np.maximum(difference, np.abs(ours - whole))
    actions = policy.spec.actions
    if isinstance(actions, Continuous):
        equal = (difference <= TOLERANCE * (np.array(actions.high) - np.array(actions.low))).all(-1)
    else:
        equal = difference == 0
    fresh = np.array([moment.fresh for moment in played])
    return Check(len(played), float(equal.mean()), bool(equal[fresh].all()), float(difference.max()))


def refuse(checked: Check, file: str, vectors: bool) -> None:
    """Judge a check; of ``vectors`` all have to be equal.

    Raises:
        UserError: if the actions differ by more than rounding.
    """
    if checked.equal < (1 if vectors else LEAST_EQUAL) or not checked.first_equal:
        raise UserError(
            f"{file} does not act as the policy: {1 - checked.equal:.1%} of {checked.observations} actions differ, "
            f"by at most {checked.largest_difference:g}; nothing was written",
            exit_code=1,
        )


# -- what stands in the contract


def contract(policy: AdaptedPolicy, traced: Traced, config: TrainConfig, files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what a reader of the files has to know."""
    spec, batch = policy.spec, 1 if traced.memory else BATCH
    action, kind = action_form(spec, policy.first_action, batch)
    seen = next(value for value in traced.program.example_inputs[0])
    inputs = [form(OBS, [batch, *spec.obs_shape], seen)]
    memory = []
    if traced.memory:
        inputs += [{"name": REWARD, "shape": [1], "type": "float32"}, {"name": ENDED, "shape": [1], "type": "bool"}]
    for name, value in traced.memory.items():
        array = form(name, list(value.shape), value)
        memory.append({**array, "next": f"next.{name}", "start": value.tolist()})
    following = [{"name": each["next"], "shape": each["shape"], "type": each["type"]} for each in memory]
    return {
        "format": FORMAT,
        "created": now(),
        "inputs": [*inputs, *({key: each[key] for key in ("name", "shape", "type")} for each in memory)],
        "outputs": [action, *following],
        "observation": {
            "normalised": False,
            "text": "observations go in as the environment gives them; where the policy scales them, the file does",
            "scale": list(spec.obs_scale),
        },
        "action": action | kind,
        "memory": memory,
        "memory_text": MEMORY if memory else "none: an action depends on its observation alone",
        "task": policy.task,
        "environment": {
            "module": config.env.name,
            "horizon": spec.horizon,
            "text": inspect.getdoc(config.env.module) or "",
        },
        "algorithm": {"module": config.algo.name},
        "files": dict(files),
    }


MEMORY = (
    "start each trial from the values under start, which hold what the adaptation has left; then give every output next.NAME "
    "as the input NAME of the next call. reward and ended are those of the action before, 0 and false at first; ended is true "
    "where its episode ended, so that obs begins the next one"
)


def form(name: str, shape: Sequence[int | str], value: torch.Tensor) -> dict[str, Any]:
    """Return the form of an input or an output with the type of a tensor."""
    return {"name": name, "shape": list(shape), "type": str(value.dtype).removeprefix("torch.")}


def action_form(spec: Spec, first: int, batch: int | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the form of ``batch`` actions, of which the environment gives the ``first`` this number, and what they mean."""
    actions = spec.actions
    if isinstance(actions, Discrete):
        kind: dict[str, Any] = {"kind": "number", "low": first, "high": first + actions.n - 1, "masked": actions.masked}
        return {"name": ACTION, "shape": [batch], "type": "int64"}, kind
    assert isinstance(actions, Continuous)
    kind = {"kind": "vector", "low": list(actions.low), "high": list(actions.high), "clipped": True}
    return {"name": ACTION, "shape": [batch, actions.size], "type": "float32"}, kind


# -- the formats


def encode_onnx(traced: Traced | Graph) -> bytes:
    """Return the graph in ONNX."""
    program = torch.onnx.export(
        traced.program, input_names=traced.inputs, output_names=traced.outputs, dynamo=True, verbose=False
    )
    if program is None:
        raise UserError("torch.onnx wrote nothing")
    content: bytes = program.model_proto.SerializeToString()
    return content


def decode_onnx(content: bytes) -> Function:
    """Return the function of a file in ONNX, run by onnxruntime on one thread."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))


def encode_pt2(traced: Traced | Graph) -> bytes:
    """Return the graph in the archive of ``torch.export``."""
    buffer = io.BytesIO()
    torch.export.save(traced.program, buffer)
    return buffer.getvalue()


def decode_pt2(content: bytes) -> Function:
    """Return the function of an archive of ``torch.export`` that :func:`encode_pt2` wrote."""
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda arrays: [each.numpy() for each in module(*map(torch.from_numpy, arrays))]


FORMATS = {
    "onnx": Format("policy.onnx", ("onnx", "onnxscript", "onnxruntime"), encode_onnx, decode_onnx),
    "pt2": Format("policy.pt2", (), encode_pt2, decode_pt2),
}

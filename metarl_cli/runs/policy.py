"""A policy that a user holds: numpy in, action out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarl_cli.interfaces import Algorithm, Policy, State, Step, Task
from metarl_cli.networks.stacked import to_device
from metarl_cli.runs import checkpoint
from metarl_cli.spaces import Spec


class AdaptedPolicy:
    """A policy for one environment of one task.

    ``policy(obs)`` returns the action. A policy with memory also wants what came of its last action:
    ``policy(obs, reward=..., ended=...)``; it remembers until :meth:`reset`.

    Args:
        policy: of one task (M = 1).
        state: after the adaptation, of one environment (N = 1).
        spec: the family's.
        saved: what :meth:`save` writes beside the policy: the run's configuration, the weights, the task.
        first_action: the number that the environment gives its first action.
    """

    def __init__(self, policy: Policy, state: State, spec: Spec, saved: State, first_action: int = 0):
        self.policy, self.adapted, self.spec, self.saved, self.first_action = policy, state, spec, saved, first_action
        self.reset()

    @property
    def task(self) -> dict[str, Any]:
        """The parameters of the task it was adapted to."""
        return dict(self.saved["task"])

    def reset(self) -> None:
        """Forget everything since the adaptation."""
        self.state = self.adapted
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None  # observation and action

    def __call__(self, obs: Any, reward: float = 0.0, ended: bool = False) -> Any:
        """Return the action: an integer, or a vector ``[D]``.

        Args:
            obs: one observation.
            reward: of the action before; a policy without memory needs none.
            ended: whether an episode ended with it, so that ``obs`` begins the next one.

        Raises:
            ValueError: for an observation of another shape.
        """
        array = np.asarray(obs)
        if array.shape in ((), self.spec.obs_shape[1:]) and array.size == math.prod(self.spec.obs_shape):
            array = array.reshape(self.spec.obs_shape)  # a number alone, or a grey image
        if array.shape != self.spec.obs_shape:
            raise ValueError(f"an observation must have the shape {self.spec.obs_shape}, not {array.shape}")
        now = self.spec.observation(array, self.saved["device"])[None, None]
        if self.last is not None:
            terminated, truncated = (torch.tensor([[flag]], device=now.device) for flag in (bool(ended), False))
            step = Step(now, torch.tensor([[float(reward)]], device=now.device), terminated, truncated, now)
            self.state = self.policy.observe(self.state, *self.last, step)
        action, self.state = self.policy.act(self.state, now)
        self.last = now, action
        taken = self.spec.actions.clip(action)[0, 0].cpu().numpy()
        return taken if taken.ndim else int(taken) + self.first_action

    def save(self, path: str | Path) -> None:
        """Write the policy as a file that ``metarl.load`` reads.

        Raises:
            UserError: if it cannot be written.
        """
        content = {name: value for name, value in self.saved.items() if name != "device"}
        state = {"policy": plain(self.policy.state_dict()), "state": plain(self.adapted), "first_action": self.first_action}
        checkpoint.save(Path(path), {**content, **state})

    def export(self, folder: str | Path, formats: Sequence[str] = ()) -> dict[str, Any]:
        """Write the policy as files that others serve, as ``metarl export`` does; returns what stands in ``contract.json``.

        Args:
            folder: where to write.
            formats: ``onnx`` and ``pt2``; none: both.

        Raises:
            UserError: if it cannot be exported or written, or a package is missing.
        """
        from metarl_cli.runs.export import export

        return export(self, Path(folder), formats)


def restore(algorithm: Algorithm, task: Task, content: State, spec: Spec, rng: torch.Generator) -> AdaptedPolicy:
    """Return the policy that :meth:`AdaptedPolicy.save` wrote; a policy that samples draws from ``rng``.

    Raises:
        ValueError: if the weights or the state do not fit.
    """
    device = rng.device
    algorithm.load_weights(content["weights"])
    policy = algorithm.load_policy(to_device(content["policy"], device), task)
    state, start = to_device(content["state"], device), policy.start(1, rng)
    state |= {"rng": start["rng"]}
    if not fits(state, start):
        raise ValueError("the saved state is not that of a trial of this policy")
    saved = {name: content[name] for name in ("config", "weights", "task")} | {"device": device}
    return AdaptedPolicy(policy, state, spec, saved, int(content["first_action"]))


def fits(state: Any, start: Any) -> bool:
    """Return whether a state has at least what one at the start of a trial has, of the same shapes and types."""
    if isinstance(start, dict):
        return isinstance(state, dict) and all(name in state and fits(state[name], value) for name, value in start.items())
    if isinstance(start, torch.Tensor):
        return isinstance(state, torch.Tensor) and (state.shape, state.dtype) == (start.shape, start.dtype)
    return True


def plain(value: Any) -> Any:
    """Return a nested state as a checkpoint may hold it: on the CPU, without generators of random numbers."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if not isinstance(item, torch.Generator)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()  # a view would bring its whole storage
    return value

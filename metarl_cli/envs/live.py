"""One running Gymnasium environment as a family of one task: to adapt to a robot, or to an environment of one's own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.gymnasium.conventions import in_numbers
from metarl_cli.envs.simulator import Simulator, whole
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Env, Family, State, Step, Task, num_tasks
from metarl_cli.spaces import Continuous, Spec


class LiveFamily(Family):
    """A family whose one task is an environment that exists once.

    Args:
        env: the environment.
        spec: what the policy was made for.
        device: where tensors go.

    Raises:
        UserError: if the environment's spaces are not those of ``spec``.
    """

    splits = ()  # its one task is not drawn
    finite = True
    max_envs = 1

    def __init__(self, env: gymnasium.Env[Any, Any], spec: Spec, device: torch.device):
        env = in_numbers(env)
        self.env, self.spec, self.device = env, spec, device
        seen, actions = env.observation_space, env.action_space
        if not isinstance(seen, spaces.Box) or seen.shape != spec.obs_shape:
            raise UserError(f"the policy was made for observations {list(spec.obs_shape)}, the environment has {seen}")
        if isinstance(spec.actions, Continuous):
            fits = (
                isinstance(actions, spaces.Box)
                and actions.shape == (spec.actions.size,)
                and np.allclose([actions.low, actions.high], [spec.actions.low, spec.actions.high])
            )
        else:
            fits = isinstance(actions, spaces.Discrete) and int(actions.n) == spec.actions.size
        if not fits:
            raise UserError(f"the policy was made for actions {spec.actions}, the environment has {actions}")
        self.first_action = int(getattr(actions, "start", 0))

    @property
    def task(self) -> Task:
        """The one task, without parameters that anybody knows."""
        return {"environment": torch.zeros(1, device=self.device)}

    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Refuse to draw: there is one task."""
        raise ValueError(f"no split {split!r}; a running environment is one task")

    def named_task(self, values: dict[str, float]) -> Task:
        """Return the one task; it has no parameters to set."""
        if values:
            raise ValueError("a running environment has no task parameters to set")
        return self.task

    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> LiveEnv:
        """Start an episode.

        Raises:
            UserError: for more than one environment at once.
        """
        if num_tasks(task) * num_envs > 1:
            raise UserError("this algorithm adapts on several environments at once, and there is one")
        return LiveEnv(self, int(torch.randint(2**31, (), generator=rng, device=rng.device)))


class LiveEnv(Env):
    """The environment with M = N = 1, reset when an episode ends or the horizon is reached."""

    def __init__(self, family: LiveFamily, seed: int):
        self.family, self.clock = family, 0
        self.simulator = Simulator(family.env, self.name)
        self.obs = self._tensor(self.simulator.reset(seed))

    @property
    @override
    def name(self) -> str:
        spec = self.family.env.spec
        return spec.id if spec else type(self.family.env.unwrapped).__name__

    def _tensor(self, obs: np.ndarray) -> Tensor:
        return self.family.spec.observation(obs, self.family.device)[None, None]

    def step(self, action: Tensor) -> Step:
        """Act; ``action [1, 1]`` or ``[1, 1, D]``."""
        family = self.family
        chosen = family.spec.actions.clip(action)[0, 0].cpu().numpy()
        seen, reward, terminated, truncated = self.simulator.step(whole(chosen, family.env.action_space.dtype))
        self.clock += 1
        truncated = truncated or self.clock >= family.spec.horizon
        next_obs = self.obs = self._tensor(seen)
        if terminated or truncated:
            self.obs, self.clock = self._tensor(self.simulator.reset()), 0
        ends = [torch.tensor([[flag]], device=family.device) for flag in (terminated, truncated)]
        return Step(next_obs, torch.tensor([[reward]], device=family.device), ends[0], ends[1], self.obs)

    def render(self) -> Image.Image:
        """Draw what the environment shows, if it was made to be drawn (``render_mode="rgb_array"``)."""
        return Image.fromarray(np.asarray(self.family.env.render()))

    def state_dict(self) -> State:
        """Refuse: the state of an environment of one's own is not the family's to save."""
        raise NotImplementedError("a running environment cannot be saved")

    def load_state_dict(self, state: State) -> None:
        """Refuse, as :meth:`state_dict` does."""
        raise NotImplementedError("a running environment cannot be loaded")

"""Trials: several episodes on one task, lived through with one memory (RL², Duan 2016, arXiv:1611.02779, section 2.2).

An agent with memory sees at every step the observation and what came of the step before: its action, its reward, whether
the episode ended. Its memory lasts across the episodes of a trial and begins anew with the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import one_hot

from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.experience.trial_replay import Trials
from metarl_cli.interfaces import Family, Params, State, Step, Task
from metarl_cli.networks.memory import MemoryConfig, build_memory
from metarl_cli.spaces import Spec, bounds, constant

MOST_PIXELS = 4096  # of an image that is fed to a memory as it is


class InputsConfig(StrictModel):
    """What the memory is fed beside the observation, and the previous action, reward and end."""

    product: bool = Field(description="the previous action times its reward")
    previous_obs: bool = Field(description="the observation before")
    clock: bool = Field(description="how much of the episode and of the trial has passed")


class Inputs:
    """The input vector of an agent with memory.

    Args:
        config: see :class:`InputsConfig`.
        spec: the family's.
    """

    def __init__(self, config: InputsConfig, spec: Spec):
        self.config, self.spec = config, spec
        self.obs_size = math.prod(spec.obs_shape)
        self.action_size = spec.num_actions if spec.box is None else len(spec.box.low)
        self.size = self.obs_size * (1 + config.previous_obs) + self.action_size * (1 + config.product) + 2 + 2 * config.clock

    def start(self, rows: int, device: torch.device) -> State:
        """What came before the first step of R trials: nothing. Everything leads with [R].

        ``step`` counts the steps of the episode, ``episode`` the episodes of the trial.
        """
        zeros = torch.zeros(rows, device=device)
        return {
            "obs": torch.zeros(rows, self.obs_size, device=device),
            "action": torch.zeros(rows, self.action_size, device=device),
            "reward": zeros,
            "ended": zeros,
            "step": zeros,
            "episode": zeros,
        }

    def after(self, before: State, obs: Tensor, action: Tensor, reward: Tensor, ended: Tensor) -> State:
        """What came before the next step; ``obs [R, ...]``, ``action [R]`` or ``[R, D]``, ``reward`` and ``ended [R]``."""
        return {
            "obs": self.flat(obs),
            "action": self.vector(action),
            "reward": reward,
            "ended": ended.to(reward.dtype),
            "step": torch.where(ended, 0.0, before["step"] + 1),
            "episode": before["episode"] + ended,
        }

    def flat(self, obs: Tensor) -> Tensor:
        """Observations ``[..., O]``, about 1 in size."""
        x = obs.flatten(-len(self.spec.obs_shape))
        x = x / 255 if obs.dtype == torch.uint8 else x.to(torch.get_default_dtype())
        if self.spec.obs_scale:
            x = x / constant(self.spec.obs_scale, x.dtype, x.device)
        return x

    def vector(self, action: Tensor) -> Tensor:
        """Actions ``[..., A]``: one-hot, or with the bounds at -1 and 1."""
        if self.spec.box is None:
            return one_hot(action, self.action_size).to(torch.get_default_dtype())
        low, high = bounds(self.spec.box, action.device)
        return 2 * (action - low) / (high - low) - 1

    def clock(self, before: State, episodes: int) -> Tensor:
        """The shares ``[R, 2]`` of the episode and of the trial that have passed."""
        return torch.stack([before["step"] / self.spec.horizon, before["episode"] / episodes], -1)

    def __call__(self, obs: Tensor, before: State, reward: Tensor, clock: Tensor) -> Tensor:
        """The inputs ``[R, I]``: the observation first; ``reward [R]`` as the memory is to see it."""
        parts = [self.flat(obs), before["action"], reward[:, None], before["ended"][:, None]]
        if self.config.product:
            parts.append(before["action"] * reward[:, None])
        if self.config.previous_obs:
            parts.append(before["obs"])
        if self.config.clock:
            parts.append(clock)
        return torch.cat(parts, -1)

    def legal(self, inputs: Tensor) -> Tensor | None:
        """Which actions ``[..., A]`` can be taken, as the observations within ``inputs`` say; None if all."""
        return inputs[..., self.obs_size - self.spec.num_actions : self.obs_size] > 0 if self.spec.masked else None


Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # features [R, H], inputs [R, I] -> choices and actions


class Agent:
    """A memory, and what it is fed.

    Args:
        memory: the recurrent network.
        inputs: see :class:`InputsConfig`.
        spec: the family's.
        device: where it lives.

    Raises:
        UserError: for large images.
    """

    def __init__(self, memory: MemoryConfig, inputs: InputsConfig, spec: Spec, device: torch.device):
        self.inputs = Inputs(inputs, spec)
        if len(spec.obs_shape) > 1 and self.inputs.obs_size > MOST_PIXELS:
            raise UserError(
                f"images of {list(spec.obs_shape)} are too large for a memory, which has no convolutions; "
                "choose another family, or algo=maml_dqn learner=dqn_atari"
            )
        self.memory = build_memory(memory, self.inputs.size)
        self.context = memory.context if memory.cell == "transformer" else None  # longest trial [steps]
        # of the first trials: rewards are fed centred and about 1 in size, observations predicted in units of their variance
        start = {"reward_mean": 0.0, "reward_scale": 1.0, "obs_variance": 1.0}
        self.measured: Params = {name: torch.tensor(value, device=device) for name, value in start.items()}
        self.device = device

    def measure(self, trials: Trials) -> None:
        """Take the size of rewards and observations from ``trials``; a rare large reward is at most 5 as it is fed."""
        inside = trials.weight > 0
        reward, obs = trials.reward[inside], trials.inputs[inside][:, : self.inputs.obs_size]
        scale = torch.maximum(reward.std(), (reward - reward.mean()).abs().max() / 5)
        self.measured = {
            "reward_mean": reward.mean(),
            "reward_scale": torch.where(scale > 1e-6, scale, 1.0),
            "obs_variance": obs.var(0).sum().clamp(min=1),  # what is small already stays as it is
        }

    def begin(self, rows: int) -> State:
        """The start of R trials: ``hidden`` is the memory itself, ``before`` what came before."""
        return {"hidden": self.memory.start(rows, self.device), "before": self.inputs.start(rows, self.device)}

    def see(self, state: State, obs: Tensor, episodes: int) -> tuple[Tensor, Tensor]:
        """The inputs ``[R, I]`` and the clock ``[R, 2]`` of R trials with ``obs [R, ...]``."""
        before = state["before"]
        clock = self.inputs.clock(before, episodes)
        begun = (before["step"] + before["episode"]) > 0
        reward = (before["reward"] - self.measured["reward_mean"]) / self.measured["reward_scale"] * begun
        return self.inputs(obs, before, reward, clock), clock

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """The state after seeing where the actions ``[R, ...]`` led; ``step`` is flattened to [R] too."""
        after = self.inputs.after(state["before"], obs, action, step.reward, step.terminated | step.truncated)
        return {**state, "before": after}

    @torch.no_grad()
    def collect(
        self,
        params: Params,
        act: Act,
        family: Family,
        task: Task,
        num_envs: int,
        episodes: int,
        rng: torch.Generator,
        segment: int,
    ) -> Trials:
        """One trial of ``episodes`` episodes in each of M x N environments, until the last one ends.

        ``segment`` is the length [steps] of back-propagation: the memory is kept at the start of each.
        """
        env = family.make(task, num_envs, rng)
        shape = env.obs.shape[:2]
        state, steps, starts = self.begin(shape.numel()), [], []
        weight = torch.ones(shape.numel(), device=self.device)
        for t in range(episodes * family.spec.horizon):
            if t % segment == 0:
                starts.append(state["hidden"])
            obs = env.obs.flatten(0, 1)
            inputs, clock = self.see(state, obs, episodes)
            features, hidden = self.memory.step(params, inputs, state["hidden"])
            choice, action = act(features, inputs)
            step = Step(*(x.flatten(0, 1) for x in env.step(action.view(*shape, *action.shape[1:]))))
            ended = step.terminated | step.truncated
            steps.append(
                {
                    "inputs": inputs,
                    "choice": choice,
                    "reward": step.reward,
                    "ended": ended,
                    "terminated": step.terminated,
                    "weight": weight,
                    "clock": clock,
                    "features": features,
                }
            )
            state = self.observe({**state, "hidden": hidden}, obs, action, step)
            weight = weight * (state["before"]["episode"] < episodes)
            if not weight.any():
                break
        kept = {k: torch.stack([start[k] for start in starts]) for k in starts[0]}
        return Trials(**{k: torch.stack([step[k] for step in steps]) for k in steps[0]}, starts=kept)

    def recall(self, params: Params, trials: Trials, segment: int) -> Tensor:
        """The features ``[T, R, H]`` of trials, differentiable; gradients reach back to the start of each segment."""
        steps, rows = trials.reward.shape
        if steps <= segment:
            return self.memory.scan(params, trials.inputs, {k: v[0] for k, v in trials.starts.items()})
        segments = len(next(iter(trials.starts.values())))
        padding = trials.inputs.new_zeros(segments * segment - steps, *trials.inputs.shape[1:])
        inputs = torch.cat([trials.inputs, padding]).view(segments, segment, rows, -1).transpose(0, 1).flatten(1, 2)
        features = self.memory.scan(params, inputs, {k: v.flatten(0, 1) for k, v in trials.starts.items()})
        return features.view(segment, segments, rows, -1).transpose(0, 1).flatten(0, 1)[:steps]


class Prediction:
    """What the memory will be fed next, told the action: an auxiliary task as in UNREAL (Jaderberg 2017, arXiv:1611.05397).

    To predict what a new task pays and where it leads, the memory must hold what the trial has shown, long before an agent
    knows what to do with it. One hidden layer on memory and action; weights are named ``prediction.*``.

    Args:
        agent: whose memory it is.
        hidden: units.
    """

    def __init__(self, agent: Agent, hidden: int):
        self.agent, self.hidden = agent, hidden

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights; the output small."""
        inputs, size = self.agent.inputs, self.agent.memory.size
        hidden = linear("prediction.hidden", self.hidden, size + inputs.action_size, 1.0, rng)
        return hidden | linear("prediction", inputs.obs_size + 1, self.hidden, 0.1, rng)

    def loss(self, params: Params, features: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """The squared error on the next observation and reward, scalar, from features and inputs ``[T, R, ...]``.

        Means over the steps of ``weight [T, R]``. The first observation of an episode follows from nothing and is left out; the
        error of the others is in units of their total variance, where that is above 1.
        """
        obs_size = self.agent.inputs.obs_size
        end = obs_size + self.agent.inputs.action_size
        following, weight = inputs[1:], weight[1:] / weight[1:].sum().clamp(min=1)
        x = torch.cat([features[:-1], following[..., obs_size:end]], -1)
        x = F.relu(F.linear(x, params["prediction.hidden.weight"], params["prediction.hidden.bias"]))
        found = F.linear(x, params["prediction.weight"], params["prediction.bias"])
        reward, ended = following[..., end], following[..., end + 1]
        of_obs = (found[..., :obs_size] - following[..., :obs_size]).square().sum(-1) * (1 - ended)
        of_obs = of_obs / self.agent.measured["obs_variance"]
        return ((of_obs + (found[..., obs_size] - reward).square()) * weight).sum()


def linear(name: str, outputs: int, inputs: int, gain: float, rng: torch.Generator) -> Params:
    """Fresh weights of a linear layer: normal with deviation ``gain / sqrt(inputs)``, zero biases."""
    weight = torch.randn(outputs, inputs, generator=rng, device=rng.device)
    return {f"{name}.weight": gain / math.sqrt(inputs) * weight, f"{name}.bias": torch.zeros(outputs, device=rng.device)}

"""Adaptation by memory: a recurrent network lives through a trial, several episodes on one task.

An agent with memory (RL², Duan 2016, arXiv:1611.02779, section 2.2) sees at every step the observation and what came of the
step before: its action, its reward, whether the episode ended. Its memory lasts across the episodes of a trial and begins anew
with the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.experience.rollout import rollout
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Distribution, Family, Params, Policy, State, Step, Task
from metarl_cli.networks.layers import apply_head, head
from metarl_cli.networks.memory import build_memory
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.spaces import Spec, constant

MOST_PIXELS = 4096  # of an image that is fed to a memory as it is
LARGEST_REWARD = 5  # in units of the deviation: rarer ones would drown the usual ones


class InputsConfig(StrictModel):
    """Inputs of the memory beside the observation and the previous action, reward and end."""

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
        self.action_size = spec.actions.size
        self.size = self.obs_size * (1 + config.previous_obs) + self.action_size * (1 + config.product) + 2 + 2 * config.clock

    def start(self, rows: int, device: torch.device) -> State:
        """Return what came before the first step of R trials: nothing. Everything leads with [R].

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
        """Encode actions ``[..., A]``: one-hot, or with the bounds at -1 and 1."""
        return self.spec.actions.encode(self.spec.actions.clip(action))

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
        """Return which actions ``[..., A]`` can be taken, as the observations within ``inputs`` say; None if all."""
        return self.spec.actions.legal(inputs[..., : self.obs_size])


class Agent:
    """A memory with its inputs.

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
        """Take the size of rewards and observations from ``trials``; the largest is fed as at most ``LARGEST_REWARD``."""
        inside = trials.weight > 0
        reward, obs = trials.reward[inside], trials.inputs[inside][:, : self.inputs.obs_size]
        scale = torch.maximum(reward.std(), (reward - reward.mean()).abs().max() / LARGEST_REWARD)
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
        return {**state, "before": self.inputs.after(state["before"], obs, action, step.reward, step.ended)}

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


Head = Callable[[Tensor, Tensor], Distribution]  # features [R, H], inputs [R, I] -> what R policies may do


class MemoryPolicy(Policy):
    """The policy of an agent with memory in trials on M tasks.

    Args:
        agent: the memory and its inputs.
        params: the agent's weights.
        head: the distribution over actions, from features and inputs.
        num_tasks: M.
        episodes: of a trial.
        stochastic: whether sampling differs from the likeliest action.
    """

    def __init__(self, agent: Agent, params: Params, head: Head, num_tasks: int, episodes: int, stochastic: bool):
        self.agent, self.params, self.head, self.num_tasks, self.episodes = agent, params, head, num_tasks, episodes
        self.stochastic = stochastic

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the memory of M x N trials at their start; its tensors lead with [M * N]."""
        return self.agent.begin(self.num_tasks * num_envs) | {"rng": None if greedy else rng}

    @torch.no_grad()
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the actions, and the state with ``seen``: the inputs, the clock and the features of this step."""
        inputs, clock = self.agent.see(state, obs.flatten(0, 1), self.episodes)
        features, hidden = self.agent.memory.step(self.params, inputs, state["hidden"])
        policy = self.head(features, inputs)
        action = policy.mode() if state["rng"] is None else policy.sample(state["rng"])
        seen = {"inputs": inputs, "clock": clock, "features": features}
        return action.reshape(*obs.shape[:2], *action.shape[1:]), {**state, "hidden": hidden, "seen": seen}

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        rows = Step(*(x.flatten(0, 1) for x in step))
        return self.agent.observe(state, obs.flatten(0, 1), action.flatten(0, 1), rows)

    def state_dict(self) -> State:
        return {"params": {name: value.detach() for name, value in self.params.items()}, "episodes": self.episodes}


@torch.no_grad()
def collect_trials(
    family: Family,
    task: Task,
    policy: Policy,
    num_envs: int,
    episodes: int,
    env_rng: torch.Generator,
    rng: torch.Generator,
    segment: int,
) -> Trials:
    """Collect one trial of ``episodes`` in each of M x N environments, until the last one ends.

    Args:
        policy: a :class:`MemoryPolicy`, or one that explores around it.
        segment: the length [steps] of back-propagation: the memory is kept at the start of each.
    """
    env = family.make(task, num_envs, env_rng)
    state, steps, starts = policy.start(num_envs, rng, greedy=False), [], []
    weight = torch.ones(env.obs.shape[:2].numel(), device=env.obs.device)
    hidden = _memory(state)["hidden"]
    for t, moment in zip(range(episodes * family.spec.horizon), rollout(env, policy, state), strict=False):
        if t % segment == 0:
            starts.append(hidden)
        action, step = moment.action.flatten(0, 1), Step(*(x.flatten(0, 1) for x in moment.step))
        steps.append(
            {
                **_memory(moment.chosen)["seen"],
                "action": action,
                "reward": step.reward,
                "ended": step.ended,
                "terminated": step.terminated,
                "weight": weight,
            }
        )
        memory = _memory(moment.state)
        hidden, weight = memory["hidden"], weight * (memory["before"]["episode"] < episodes)
        if not weight.any():
            break
    kept = {k: torch.stack([start[k] for start in starts]) for k in starts[0]}
    return Trials(**{k: torch.stack([step[k] for step in steps]) for k in steps[0]}, starts=kept)


def _memory(state: State) -> State:
    """Return the state of the policy with memory, be it within one that explores."""
    memory: State = state.get("policy", state)
    return memory


class Prediction:
    """Prediction of the memory's next inputs, given the action: an auxiliary task as in UNREAL (Jaderberg 2017,
    arXiv:1611.05397).

    To predict what a new task pays and where it leads, the memory must hold what the trial has revealed, long before an agent
    knows what to do with it. One hidden layer on memory and action; weights are named ``prediction.*``.

    Args:
        agent: whose memory it is.
        hidden: units.
    """

    def __init__(self, agent: Agent, hidden: int):
        self.agent, self.hidden = agent, hidden

    def init(self, rng: torch.Generator) -> Params:
        """Draw fresh weights, with a small output."""
        inputs, size = self.agent.inputs, self.agent.memory.size
        return head("prediction", inputs.obs_size + 1, self.hidden, size + inputs.action_size, 0.1, rng)

    def loss(self, params: Params, features: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the squared error on the next observation and reward, scalar, from features and inputs ``[T, R, ...]``.

        It is a mean over the steps of ``weight [T, R]``. The first observation of an episode follows from nothing and is left
        out; the error of the others is in units of their total variance, where that is above 1.
        """
        obs_size = self.agent.inputs.obs_size
        end = obs_size + self.agent.inputs.action_size
        following, weight = inputs[1:], weight[1:] / weight[1:].sum().clamp(min=1)
        predicted = apply_head(params, "prediction", torch.cat([features[:-1], following[..., obs_size:end]], -1))
        reward, ended = following[..., end], following[..., end + 1]
        of_obs = (predicted[..., :obs_size] - following[..., :obs_size]).square().sum(-1) * (1 - ended)
        of_obs = of_obs / self.agent.measured["obs_variance"]
        return ((of_obs + (predicted[..., obs_size] - reward).square()) * weight).sum()

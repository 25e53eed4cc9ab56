"""Adaptation by memory: a recurrent network acts in a trial, several episodes on one task.

At every step the input of an agent with memory (RL², Duan 2016, arXiv:1611.02779, section 2.2) is the observation with the
action, the reward and the end of the episode of the previous step. The memory lasts over the episodes of a trial and is reset
before the next trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.experience.finite import StepCheck
from metarl_cli.experience.returns import deviation, variance
from metarl_cli.experience.rollout import rollout
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Family, Params, Policy, State, Step, Task
from metarl_cli.networks.layers import apply_head, head
from metarl_cli.networks.memory import build_memory
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.progress import timed
from metarl_cli.spaces import Distribution, Spec, constant

MOST_PIXELS = 4096  # of an image that is an input of a memory without convolutions
LARGEST_REWARD = 5  # of a normalised reward [standard deviations]: a rare large reward must not dominate the inputs


class InputsConfig(StrictModel):
    """Optional inputs of the memory, beside the observation and the previous action, reward and end of an episode."""

    product: bool = Field(description="the product of the previous action and its reward")
    previous_obs: bool = Field(description="the previous observation")
    clock: bool = Field(description="shares of the episode and of the trial that have passed")


class Inputs:
    """The input vector of an agent with memory.

    Args:
        config: see :class:`InputsConfig`.
        spec: the family's spec.
    """

    def __init__(self, config: InputsConfig, spec: Spec):
        self.config, self.spec = config, spec
        self.obs_size = math.prod(spec.obs_shape)
        self.action_size = spec.actions.size
        self.size = self.obs_size * (1 + config.previous_obs) + self.action_size * (1 + config.product) + 2 + 2 * config.clock

    def start(self, rows: int, device: torch.device) -> State:
        """Return the record of the previous step at the start of R trials: zeros ``[R, ...]``.

        ``step`` is the number of steps in the episode so far, ``episode`` the number of episodes in the trial so far.
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
        """Return the record of this step for the next one.

        Args:
            before: the record of the previous step.
            obs: ``[R, ...]``.
            action: ``[R]`` or ``[R, D]``.
            reward: ``[R]``.
            ended: whether the episode ended, ``[R]``.
        """
        return {
            "obs": self.flat(obs),
            "action": self.vector(action),
            "reward": reward,
            "ended": ended.to(reward.dtype),
            "step": torch.where(ended, 0.0, before["step"] + 1),
            "episode": before["episode"] + ended,
        }

    def flat(self, obs: Tensor) -> Tensor:
        """Return flat observations ``[..., O]``, scaled to a size of about 1."""
        x = obs.flatten(-len(self.spec.obs_shape))
        x = x / 255 if obs.dtype == torch.uint8 else x.to(torch.get_default_dtype())
        if self.spec.obs_scale:
            x = x / constant(self.spec.obs_scale, x.dtype, x.device)
        return x

    def vector(self, action: Tensor) -> Tensor:
        """Encode actions ``[..., A]``: one-hot, or scaled so that the bounds are -1 and 1."""
        return self.spec.actions.encode(self.spec.actions.clip(action))

    def clock(self, before: State, horizon: Tensor, episodes: int) -> Tensor:
        """Return the shares ``[R, 2]`` of the episode, of ``horizon [R]`` steps at most, and of the trial that have passed."""
        return torch.stack([before["step"] / horizon, before["episode"] / episodes], -1)

    def __call__(self, obs: Tensor, before: State, reward: Tensor, clock: Tensor) -> Tensor:
        """Return the inputs ``[R, I]`` of the memory, the observation first; ``reward [R]`` is normalised already."""
        parts = [self.flat(obs), before["action"], reward[:, None], before["ended"][:, None]]
        if self.config.product:
            parts.append(before["action"] * reward[:, None])
        if self.config.previous_obs:
            parts.append(before["obs"])
        if self.config.clock:
            parts.append(clock)
        return torch.cat(parts, -1)

    def previous_action(self, device: torch.device) -> Tensor:
        """Return the matrix ``[A, I]`` that selects the previous action from inputs."""
        return torch.eye(self.size, device=device)[self.obs_size : self.obs_size + self.action_size]

    def legal(self, inputs: Tensor) -> Tensor | None:
        """Return a mask of legal actions ``[..., A]`` from the observations within ``inputs``; None if all are legal."""
        return self.spec.actions.legal(inputs[..., : self.obs_size])


class Agent:
    """A memory network with its inputs.

    Args:
        memory: see :class:`MemoryConfig`.
        inputs: see :class:`InputsConfig`.
        spec: the family's spec.
        device: device of the weights and the state.

    Raises:
        UserError: if observations are images of more than ``MOST_PIXELS`` entries.
    """

    def __init__(self, memory: MemoryConfig, inputs: InputsConfig, spec: Spec, device: torch.device):
        self.inputs = Inputs(inputs, spec)
        if len(spec.obs_shape) > 1 and self.inputs.obs_size > MOST_PIXELS:
            raise UserError(
                f"images of {list(spec.obs_shape)} are too large for a memory, which has no convolutions; "
                "choose another family, or algo=maml_dqn learner=dqn_atari"
            )
        self.memory = build_memory(memory, self.inputs.size)
        self.context = self.memory.context
        # normalisation of rewards, and the unit of the error of predicted observations; measured on the first trials
        start = {"reward_mean": 0.0, "reward_scale": 1.0, "obs_variance": 1.0}
        self.measured: Params = {name: torch.tensor(value, device=device) for name, value in start.items()}
        self.device = device

    def measure(self, trials: Trials) -> None:
        """Measure the normalisation on ``trials``; their largest normalised reward is at most ``LARGEST_REWARD``."""
        inside = trials.weight > 0
        reward, obs = trials.reward[inside], trials.inputs[inside][:, : self.inputs.obs_size]
        scale = torch.maximum(deviation(reward), (reward - reward.mean()).abs().max() / LARGEST_REWARD)
        self.measured = {
            "reward_mean": reward.mean(),
            "reward_scale": torch.where(scale > 1e-6, scale, 1.0),
            "obs_variance": variance(obs).sum().clamp(min=1),  # small observations are not scaled up
        }

    def begin(self, rows: int) -> State:
        """Return the state at the start of R trials: ``hidden`` of the memory network, and the record ``before``."""
        return {"hidden": self.memory.start(rows, self.device), "before": self.inputs.start(rows, self.device)}

    def see(self, state: State, obs: Tensor, episodes: int) -> tuple[Tensor, Tensor]:
        """Return the inputs ``[R, I]`` and the clock ``[R, 2]`` of R trials for ``obs [R, ...]``.

        The state holds, beside what :meth:`begin` gives, the ``horizon [R]`` of an episode of each.
        """
        before = state["before"]
        clock = self.inputs.clock(before, state["horizon"], episodes)
        started = (before["step"] + before["episode"]) > 0
        reward = (before["reward"] - self.measured["reward_mean"]) / self.measured["reward_scale"] * started
        return self.inputs(obs, before, reward, clock), clock

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Return the state after a step with actions ``[R, ...]``; the fields of ``step`` are ``[R, ...]`` too."""
        return {**state, "before": self.inputs.after(state["before"], obs, action, step.reward, step.ended)}

    @timed("memory")
    def recall(self, params: Params, trials: Trials, segment: int) -> Tensor:
        """Return the differentiable features ``[T, R, H]`` of trials; back-propagation stops at the start of each segment."""
        steps, rows = trials.reward.shape
        if steps <= segment:
            return self.memory.scan(params, trials.inputs, {k: v[0] for k, v in trials.starts.items()})
        segments = -(-steps // segment)
        padding = trials.inputs.new_zeros(segments * segment - steps, *trials.inputs.shape[1:])
        inputs = torch.cat([trials.inputs, padding]).view(segments, segment, rows, -1).transpose(0, 1).flatten(1, 2)
        features = self.memory.scan(params, inputs, {k: v[:segments].flatten(0, 1) for k, v in trials.starts.items()})
        return features.view(segment, segments, rows, -1).transpose(0, 1).flatten(0, 1)[:steps]


Head = Callable[[Tensor, Tensor], Distribution]  # features [R, H], inputs [R, I] -> distribution over actions [R]


class MemoryPolicy(Policy):
    """The policy of an agent with memory in trials on M tasks.

    Args:
        agent: the memory network and its inputs.
        params: the agent's weights.
        head: maps features and inputs to the distribution over actions.
        horizons: ``[M]``, of an episode of each task.
        episodes: episodes of a trial.
        stochastic: whether the policy can sample actions; False: it is deterministic.
    """

    def __init__(self, agent: Agent, params: Params, head: Head, horizons: Tensor, episodes: int, stochastic: bool):
        self.agent, self.params, self.head, self.horizons, self.episodes = agent, params, head, horizons, episodes
        self.stochastic = stochastic

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the state at the start of M x N trials, with tensors ``[M * N, ...]``."""
        horizon = self.horizons.repeat_interleave(num_envs)
        return self.agent.begin(len(horizon)) | {"horizon": horizon, "rng": None if greedy else rng}

    @override
    @torch.no_grad()
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the actions and the next state; ``seen`` in it holds the inputs, the clock and the features of this step."""
        inputs, clock = self.agent.see(state, obs.flatten(0, 1), self.episodes)
        features, hidden = self.agent.memory.step(self.params, inputs, state["hidden"])
        policy = self.head(features, inputs)
        action = policy.mode() if state["rng"] is None else policy.sample(state["rng"])
        seen = {"inputs": inputs, "clock": clock, "features": features}
        return action.reshape(*obs.shape[:2], *action.shape[1:]), {**state, "hidden": hidden, "seen": seen}

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        rows = Step(*(x.flatten(0, 1) for x in step))
        return self.agent.observe(state, obs.flatten(0, 1), action.flatten(0, 1), rows)

    @override
    def state_dict(self) -> State:
        params = {name: value.detach() for name, value in self.params.items()}
        return {"params": params, "horizons": self.horizons, "episodes": self.episodes}


@timed("collecting experience")
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
    """Collect one trial of ``episodes`` episodes in each of M x N environments, until the last trial ends.

    Args:
        family: the family of the tasks.
        task: M tasks.
        policy: a :class:`MemoryPolicy`, or an exploration policy around one.
        num_envs: N.
        episodes: episodes of a trial.
        env_rng: generator of the environments.
        rng: generator of the policy.
        segment: length of truncated back-propagation [steps]; the memory's state is kept at the start of each segment.
    """
    env = family.make(task, num_envs, env_rng)
    state, steps, starts = policy.start(num_envs, rng, greedy=False), [], []
    weight = torch.ones(env.obs.shape[:2].numel(), device=env.obs.device)
    hidden, watch = _memory(state)["hidden"], StepCheck(env)
    for t, moment in zip(range(episodes * family.spec.horizon), rollout(env, policy, state), strict=False):
        if t % segment == 0:
            starts.append(hidden)
        watch.see(moment.step)
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
    watch.finish()
    kept = {k: torch.stack([start[k] for start in starts]) for k in starts[0]}
    return Trials(**{k: torch.stack([step[k] for step in steps]) for k in steps[0]}, starts=kept)


def _memory(state: State) -> State:
    """Return the state of the :class:`MemoryPolicy`, also from the state of an exploration policy around it."""
    memory: State = state.get("policy", state)
    return memory


class Prediction:
    """Prediction of the next observation and reward: an auxiliary task as in UNREAL (Jaderberg 2017, arXiv:1611.05397).

    To predict the rewards and dynamics of a new task, the memory must represent the information that the trial has given,
    before the policy can use it. The head has one hidden layer on features and action; weights are named ``prediction.*``.

    Args:
        agent: the agent whose features are used.
        hidden: units of the hidden layer.
    """

    def __init__(self, agent: Agent, hidden: int):
        self.agent, self.hidden = agent, hidden

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights; the output layer is small."""
        inputs, size = self.agent.inputs, self.agent.memory.size
        return head("prediction", inputs.obs_size + 1, self.hidden, size + inputs.action_size, 0.1, rng)

    def loss(self, params: Params, features: Tensor, inputs: Tensor, weight: Tensor, whole: Tensor | None = None) -> Tensor:
        """Return the squared error on the next observation and reward, scalar, from features and inputs ``[T, R, ...]``.

        The loss is the mean over steps, weighted by ``weight [T, R]``. The first observation of an episode cannot be predicted
        and is left out. The error of an observation is divided by the total variance of observations, where that is above 1.

        Args:
            params: with the head's weights.
            features: of the memory.
            inputs: of the memory.
            weight: of the steps.
            whole: weights ``[T', B]`` of the minibatch of which these trials are a share, T' at least T, so that the losses
                of all shares add up to the mean over it; None: they are all of it.
        """
        whole = weight if whole is None else whole
        obs_size = self.agent.inputs.obs_size
        end = obs_size + self.agent.inputs.action_size
        following, weight = inputs[1:], weight[1:] / whole[1:].sum().clamp(min=1)
        predicted = apply_head(params, "prediction", features[:-1], following[..., obs_size:end])
        reward, ended = following[..., end], following[..., end + 1]
        of_obs = (predicted[..., :obs_size] - following[..., :obs_size]).square().sum(-1) * (1 - ended)
        of_obs = of_obs / self.agent.measured["obs_variance"]
        return ((of_obs + (predicted[..., obs_size] - reward).square()) * weight).sum()

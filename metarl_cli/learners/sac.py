"""SAC: a squashed Gaussian policy and two Q-functions, as pure functions of their weights (Haarnoja 2018, arXiv:1812.05905).

    y            = r + gamma (1 - terminated) (min_i Q_i^-(s', a') - alpha log pi(a' | s'))          a' ~ pi(. | s')
    critic         mean of  sum_i (Q_i(s, a) - y)^2
    policy         mean of  alpha log pi(b | s) - min_i Q_i(s, b)                                     b ~ pi(. | s)
    temperature    alpha is fixed, or learned by  -alpha (log pi(b | s) + target entropy)

The loss is the sum of the three, and each part moves its own weights: in the policy's part the Q-functions are fixed. An
encoder of the task, whose outputs are entries of the observations, learns from the critic's part and not from the policy's, as
in PEARL (Rakelly 2019, arXiv:1903.08254).

Actions are drawn with noise that the caller gives, ``with_noise``, so that the loss is a function of its arguments.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.experience.returns import lambda_returns
from metarl_cli.interfaces import Batch, Params, Transitions
from metarl_cli.interfaces import Learner as Base
from metarl_cli.networks.distributions import SquashedGaussian
from metarl_cli.networks.q_network import NetworkConfig, QNetwork
from metarl_cli.networks.stacked import detached, stack
from metarl_cli.spaces import Continuous, Spec

CRITICS = 2
LEAST, MOST = -20.0, 2.0  # of the logarithm of the deviation before squashing, as in PEARL's and SAC's published code


class LayersConfig(StrictModel):
    """The hidden layers of the policy, and of each Q-function."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each hidden layer")
    activation: Literal["relu", "tanh", "silu"] = Field(description="nonlinearity of the hidden layers")
    layer_norm: bool = Field(description="normalise each hidden layer before its activation")


class Config(StrictModel):
    """The networks and the losses of SAC; replay and slow copies are the algorithm's."""

    network: LayersConfig
    gamma: float = Field(ge=0, lt=1, description="discount per step")
    reward_scale: float = Field(gt=0, description="factor of rewards")
    temperature: float = Field(gt=0, description="alpha, weight of the policy's entropy [scaled reward per nat]; the first one")
    target_entropy: float | None = Field(
        description="entropy per entry of an action that alpha is learned for [nats, bounds at -1 and 1]; none: fixed"
    )


class SAC(Base):
    """A soft actor-critic for one task. Weights are named ``policy.*``, ``critic.* [2, ...]`` and ``log_temperature``.

    Args:
        config: see :class:`Config`.
        spec: the family's spec.

    Raises:
        UserError: if actions are no vectors, or observations are images.
    """

    actions: Continuous
    stochastic = True
    draws = 2  # the action after a transition, and another one in its place

    def __init__(self, config: Config, spec: Spec):
        if not isinstance(spec.actions, Continuous):
            raise UserError("a squashed Gaussian needs actions that are vectors; algo=pearl_dqn chooses among numbered actions")
        if len(spec.obs_shape) != 1 or spec.pixels:
            raise UserError(f"the Q-functions read an action beside vectors, not images of {list(spec.obs_shape)}")
        self.config, self.spec, self.actions, size = config, spec, spec.actions, spec.actions.size
        layers = NetworkConfig(convolutions=[], dueling=False, context=0, **config.network.model_dump())
        self.network = QNetwork(layers, spec.obs_shape, (2, size), spec.obs_scale)
        scale = (*spec.obs_scale, *(1.0,) * size) if spec.obs_scale else ()
        self.critic = QNetwork(layers, (spec.obs_shape[0] + size,), (), scale)
        self.noise: Tensor | None = None

    @override
    def with_noise(self, noise: Tensor) -> Self:
        drawing = copy.copy(self)
        drawing.noise = noise
        return drawing

    @override
    def init(self, rng: torch.Generator) -> Params:
        params = _named("policy", self.network.init(rng))
        params |= _named("critic", stack([self.critic.init(rng) for _ in range(CRITICS)]))
        if self.config.target_entropy is not None:
            params["log_temperature"] = torch.tensor(math.log(self.config.temperature), device=rng.device)
        return params

    @override
    def policy(self, params: Params, obs: Tensor) -> SquashedGaussian:
        mean, log_std = self.network(_part("policy", params), obs).unbind(-2)
        return SquashedGaussian(mean, log_std.clamp(LEAST, MOST), self.actions)

    def values(self, params: Params, obs: Tensor, action: Tensor) -> Tensor:
        """Return the values ``[2, T, N]`` of actions ``[T, N, D]`` by both Q-functions."""
        x = torch.cat([obs, self.actions.encode(self.actions.clip(action))], -1)
        return self.critic(_part("critic", params), x.expand(CRITICS, *x.shape))

    def temperature(self, params: Params) -> Tensor | float:
        """Return alpha."""
        return params["log_temperature"].exp() if "log_temperature" in params else self.config.temperature

    @override
    def prepare(
        self, params: Params, slow: Params, batch: Transitions, gamma: float | Tensor | None = None, lambda_: float = 0.0
    ) -> Batch:
        """Compute the targets ``target [T, N]`` of both Q-functions; ``noise [T, N, D]`` goes on to the loss.

        The policy and the temperature are those of ``params``, the Q-functions those of ``slow``.
        """
        assert self.noise is not None, "with_noise comes first"
        after, instead = self.noise.unbind(-2)
        action, log_prob = self.policy(params, batch.next_obs).draw(after)
        value = self.values(slow, batch.next_obs, action).amin(0) - self.temperature(params) * log_prob
        discount = self.config.gamma if gamma is None else gamma
        target = lambda_returns(
            batch.reward * self.config.reward_scale, value, batch.terminated, batch.ended, discount, lambda_
        )
        return Batch(batch, {"target": target, "noise": instead})

    @override
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Return the sum of the losses of the critic, the policy and the temperature."""
        experience, signal = batch
        obs = experience.obs.detach()
        action, log_prob = self.policy(params, obs).draw(signal["noise"])
        alpha, target = self.temperature(detached(params)), self.config.target_entropy
        loss = (self.values(params, experience.obs, experience.action) - signal["target"]).square().sum(0)
        loss = loss + alpha * log_prob - self.values(detached(params), obs, action).amin(0)
        if target is not None:
            loss = loss - self.temperature(params) * (log_prob.detach() + target * self.actions.size)
        weight = experience.weight
        return (loss * (weight / weight.sum((-2, -1), keepdim=True))).sum((-2, -1))


def _named(name: str, params: Params) -> Params:
    """Return the weights of a part by their names among all weights."""
    return {f"{name}.{key}": value for key, value in params.items()}


def _part(name: str, params: Params) -> Params:
    """Return the weights of a part by their own names."""
    return {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}


Learner = SAC

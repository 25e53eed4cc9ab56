"""Adaptation by gradient: collect experience on M tasks, then adapt to each task by a few gradient steps.

    theta_{k+1} = theta_k - alpha * grad L_support(theta_k)          (MAML, Finn 2017, arXiv:1703.03400, equation 1)

Tasks are the first axis of all tensors. A learner whose functions ``prepare`` and ``loss`` take that axis is called once for
all tasks; another one, written for a single task, is called through ``vmap``. Gradients are autograd's, of the sum of losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.func import vmap
from typing_extensions import override

from metarl_cli.adaptation.learned_loss import LossConfig, in_learned_loss
from metarl_cli.adaptation.learning import Learning
from metarl_cli.adaptation.support import Exploring, RolloutsConfig, collect_rollouts
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import (
    LENGTHS,
    blank_transitions,
    bytes_per_env,
    extrapolated,
    peak,
    size_of,
    without_content,
)
from metarl_cli.experience.returns import ReturnsConfig
from metarl_cli.interfaces import Adapted, Batch, Budget, Family, Learner, Params, Policy, State, Task, Transitions, num_tasks
from metarl_cli.networks.optimizers import Adam
from metarl_cli.networks.q_network import in_head, in_structure
from metarl_cli.networks.stacked import broadcast_rows, detached, expand, first
from metarl_cli.progress import note, timed
from metarl_cli.spaces import Distribution


class SupportConfig(RolloutsConfig):
    """The support: the experience that adaptation to a task learns from."""

    fresh: bool = Field(description="collect new experience with the adapted policy before every adaptation step")


class InnerConfig(StrictModel):
    """The inner loop: adaptation to a task by gradient steps."""

    steps: int = Field(ge=0, description="K, inner steps in meta-training; 0 is plain multi-task training")
    rule: Literal["sgd", "adam"] = Field(description="rule of the inner update; adam is for fine-tuning, not for meta-training")
    lr: float = Field(gt=0, description="inner learning rate; the initial value where rates are learned")
    rates: Literal["fixed", "tensor", "parameter"] = Field(
        description="learned rates: none, one per tensor (MAML++), one per parameter (Meta-SGD)"
    )
    each_step: bool = Field(description="rates of its own for each of the K steps (MAML++), where rates are learned")
    positive: bool = Field(description="learn the logarithms of the rates, so that none turns negative")
    clip: float | None = Field(gt=0, description="norm to which a task's gradient is clipped; none: no clipping")
    order: Literal[1, 2] = Field(description="order of the meta-gradient; 1 ignores second derivatives (FOMAML)")
    scope: Literal["all", "head", "context"] = Field(
        description="weights that the inner loop adapts: all, the head (ANIL), the context inputs (CAVIA)"
    )
    loss: LossConfig
    returns: ReturnsConfig = Field(description="estimate of the returns of the support")
    decay: Share = Field(description="factor of the rates at each adaptation step beyond the K of meta-training; 1: none")
    scratch_lr: float = Field(gt=0, description="learning rate of Adam for the reference that adapts from fresh weights")
    support: SupportConfig

    @model_validator(mode="after")
    def _check_combination(self) -> InnerConfig:
        if self.rule == "adam" and self.steps > 0:
            raise ValueError("inner.rule=adam is for fine-tuning only: it needs inner.steps=0")
        if self.steps == 0 and self.rates != "fixed":
            raise ValueError("inner.steps=0 learns no rates: it needs inner.rates=fixed")
        if self.rates == "fixed" and (self.each_step or self.positive):
            raise ValueError("inner.each_step and inner.positive are of learned rates: inner.rates=tensor or parameter")
        if self.loss.learned and (self.scope != "context" or self.steps == 0):
            raise ValueError("inner.loss.learned=true moves context inputs: it needs inner.scope=context, inner.steps above 0")
        if self.loss.learned and (self.returns.gamma is not None or self.returns.lambda_):
            raise ValueError("inner.loss.learned=true has no targets: it needs inner.returns.gamma=null and lambda=0")
        return self


class NetworkPolicy(Policy):
    """The policies of R networks without memory.

    Args:
        learner: the learner that defines the networks.
        params: weights ``[R, ...]``; or ``[P, ...]`` of P individuals, each of which acts in R / P tasks.
    """

    def __init__(self, learner: Learner, params: Params):
        self.learner, self.params, self.stochastic = learner, detached(params), learner.stochastic
        self.num, self.packed = len(first(self.params)), learner.pack(self.params)

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        rows = obs.shape[:2]
        policy = self.learner.policy(self.packed, obs if rows[0] == self.num else obs.reshape(self.num, -1, *obs.shape[2:]))
        action = policy.mode() if state["rng"] is None else policy.sample(state["rng"])
        return action if rows[0] == self.num else action.reshape(*rows, *action.shape[2:]), state

    @override
    def state_dict(self) -> State:
        return {"params": {name: value for name, value in self.params.items() if not in_learned_loss(name)}}


def load_network_policy(learner: Learner, state: State) -> NetworkPolicy:
    """Return the policy of saved networks.

    Raises:
        ValueError: if the weights are not those of the learner's network.
    """
    params = state["params"]
    for name, value in learner.init(torch.Generator(first(params).device)).items():
        if name not in params or params[name].shape[1:] != value.shape:
            raise ValueError(f"the saved weights do not fit this network: {name}")
    return NetworkPolicy(learner, params)


def adapted_names(params: Params, scope: str) -> list[str]:
    """Return the names of the weights that the inner loop adapts.

    Raises:
        ValueError: if the network has no weights in this scope.
    """
    params = {name: value for name, value in params.items() if not in_structure(name) and not in_learned_loss(name)}
    chosen = {"all": list(params), "head": [name for name in params if in_head(name)], "context": ["context"]}
    names = [name for name in chosen[scope] if name in params]
    if not names:
        raise ValueError(f"the network has no weights for scope={scope}; set learner.network.context above 0")
    return names


def initial_rates(params: Params, config: InnerConfig) -> Params:
    """Return what the rates of each adapted tensor are computed from: see :func:`rates_of_step`.

    A scalar each, or a tensor of the same shape (rates=parameter); with ``each_step`` one for each of K steps, ``[K, ...]``.
    """
    names, full = adapted_names(params, config.scope), config.rates == "parameter"
    steps = (config.steps,) if config.each_step else ()
    value = math.log(config.lr) if config.positive else config.lr
    return {k: params[k].new_full((*steps, *(params[k].shape if full else ())), value) for k in names}


def rates_of_step(rates: Params, step: int, config: InnerConfig) -> Params:
    """Return the learning rates of an adaptation step, counted from 1; beyond the K of training the last ones, which fall."""
    factor = fading(step, config.steps, config.decay) if config.steps else 1.0
    if config.each_step:
        rates = {name: value[min(step, config.steps) - 1] for name, value in rates.items()}
    if config.positive:
        rates = {name: value.exp() for name, value in rates.items()}
    return rates if factor == 1 else {name: value * factor for name, value in rates.items()}


@timed("targets")
def prepare_each(
    learner: Learner,
    params: Params,
    slow: Params,
    experience: Transitions,
    gamma: float | Tensor | None = None,
    lambda_: float = 0.0,
) -> Batch:
    """Prepare the experience of each of M tasks; the first axis of all tensors is M, that of ``gamma`` too."""
    if learner.stacked:
        return learner.prepare(params, slow, experience, gamma, lambda_)
    per_task = vmap(learner.prepare, in_dims=(0, 0, 0, 0 if isinstance(gamma, Tensor) else None, None))
    batch: Batch = per_task(params, slow, experience, gamma, lambda_)
    return batch


@timed("loss")
def loss_each(learner: Learner, params: Params, batch: Batch) -> Tensor:
    """Compute the loss ``[M]`` of each of M tasks; the first axis of all tensors is M.

    Raises:
        ValueError: if a learner that is ``stacked`` returns something else.
    """
    losses: Tensor = learner.loss(params, batch) if learner.stacked else vmap(learner.loss)(params, batch)
    if losses.shape != (num := batch.experience.reward.shape[:1]):
        raise ValueError(f"{type(learner).__name__}.loss returns {list(losses.shape)} for {num[0]} tasks: set stacked = False")
    return losses


@timed("inner gradient")
def loss_gradients(
    learner: Learner, params: Params, names: list[str], batch: Batch, create_graph: bool = False
) -> tuple[Params, Tensor]:
    """Compute the gradient of each task's loss in the weights ``names``, and the losses ``[M]``.

    No task's loss depends on another's weights, so the gradient of their sum holds each task's own gradient.

    Args:
        learner: the learner that defines the loss.
        params: the weights ``[M, ...]``.
        names: of the weights that move. What else depends on the same weights, such as targets in ``batch``, stays fixed.
        batch: the prepared experience of the tasks.
        create_graph: whether an outer gradient will go through the result, to ``params`` and to ``batch``.
    """
    with torch.enable_grad():
        # the gradient is taken in views of the weights, and an outer gradient goes through these views
        views = {name: params[name].view_as(params[name]) if create_graph else params[name].detach() for name in names}
        moving = {name: view.requires_grad_() for name, view in views.items()}
        losses = loss_each(learner, params | moving, batch)
        gradients = torch.autograd.grad(losses.sum(), list(moving.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(names, gradients, strict=True)), losses if create_graph else losses.detach()


def support_gradients(
    learner: Learner, params: Params, names: list[str], support: Transitions, returns: ReturnsConfig, create_graph: bool = False
) -> Params:
    """Compute the gradient of each task's support loss in the weights ``names``; the first axis of all tensors is M.

    Targets are computed by the network that adapts. The inner gradient holds them fixed (the semi-gradient of DQN); an outer
    gradient (``create_graph``) flows through them, as they depend on the initialisation too.
    """
    with torch.set_grad_enabled(create_graph):
        batch = prepare_each(learner, params, params, support, returns.gamma, returns.lambda_)
    return loss_gradients(learner, params, names, batch, create_graph)[0]


@timed("inner step")
def inner_step(
    learner: Learner,
    params: Params,
    rates: Params,
    support: Transitions,
    returns: ReturnsConfig,
    order: int = 2,
    clip: float | None = None,
) -> Params:
    """Take one gradient step on each task's support; differentiable in ``params`` and ``rates`` (``order`` 2).

    Each task's gradient is clipped to the norm ``clip``, that of all adapted tensors together; None: it is not.
    """
    second = order == 2 and torch.is_grad_enabled()
    gradients = support_gradients(learner, params, list(rates), support, returns, create_graph=second)
    return descended(params, rates, gradients, clip)


def descended(params: Params, rates: Params, gradients: Params, clip: float | None) -> Params:
    """Return the weights ``[M, ...]`` after a step against gradients, which are clipped to the norm ``clip`` first."""
    if clip is not None:
        gradients = clipped(gradients, clip)
    return {k: p - rates[k] * gradients[k] if k in rates else p for k, p in params.items()}


def clipped(gradients: Params, largest: float) -> Params:
    """Clip the gradient ``[M, ...]`` of each task to a norm; differentiable, also where a gradient is zero."""
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0)
    scale = largest * square.clamp(min=largest**2).rsqrt()
    return {name: g * broadcast_rows(scale, g) for name, g in gradients.items()}


def learning(learner: Learner, params: Params, rates: Params, inner: InnerConfig) -> Learning | None:
    """Return the gradient steps from the weights ``params`` of one network as functions; None for Adam, which remembers.

    Args:
        learner: the learner that defines the loss and the policy.
        params: weights of one network; those without a rate stay as they are.
        rates: what :func:`rates_of_step` takes.
        inner: the inner loop.
    """
    if inner.rule == "adam":
        return None
    whole, trained, decay = expand(detached(params), 1), max(inner.steps, 1), inner.decay if inner.steps else 1.0
    of_steps = [rates_of_step(detached(rates), step, inner) for step in range(1, trained + 1)]
    listed = {name: torch.stack([each[name] for each in of_steps]) for name in rates}

    def step(number: Tensor, moved: Params, support: Transitions) -> Params:
        place = (number - 1).clamp(max=trained - 1).reshape(1)
        factor = decay ** (number - trained).clamp(min=0).to(torch.float32)
        now = {name: value.index_select(0, place)[0] * factor for name, value in listed.items()}
        after = inner_step(learner, whole | moved, now, support, inner.returns, clip=inner.clip)
        return {name: after[name] for name in moved}

    start = {name: whole[name].clone() for name in rates}

    def act(moved: Params, obs: Tensor) -> Distribution:
        return learner.policy(whole | moved, obs)

    return Learning(start, step, act, learner.actions, inner.support, inner.support.fresh)


def normalised(gradients: Params) -> Params:
    """Divide the gradient ``[M, ...]`` of each task by its norm, that of all tensors together; differentiable."""
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0)
    scale = (square + 1e-12).rsqrt()
    return {name: g * broadcast_rows(scale, g) for name, g in gradients.items()}


def collect_support(
    learner: Learner,
    params: Params,
    family: Family,
    task: Task,
    config: SupportConfig,
    rng: torch.Generator,
    collecting: Policy | None = None,
) -> Transitions:
    """Collect ``rollouts`` episodes per task, each in a fresh environment, truncated at ``steps`` -> ``[M, T, N, ...]``.

    The policies of ``params`` collect them, unless others are given.
    """
    return collect_rollouts(collecting or NetworkPolicy(learner, params), learner.actions, family, task, config, rng)


def fading(step: int, trained: int, decay: float) -> float:
    """Return the factor of the rates at an adaptation step, counted from 1: it falls beyond the ``trained`` steps.

    Learned rates are made for so many steps. With the same rates, further steps overshoot until the weights are not finite.
    """
    return decay ** max(step - trained, 0)


def diverged(params: Params) -> int:
    """Return the number of tasks of ``params [M, ...]`` with a weight that is not finite."""
    finite = [value.isfinite().reshape(len(value), -1).all(1) for value in params.values()]
    return int((~torch.stack(finite).all(0)).sum())


@torch.no_grad()
def adapt(
    learner: Learner,
    params: Params,
    rates: Callable[[int], Params],
    family: Family,
    task: Task,
    budget: Budget,
    support: SupportConfig,
    returns: ReturnsConfig,
    rng: torch.Generator,
    adam: Adam | None = None,
    clip: float | None = None,
    exploring: Exploring | None = None,
) -> Iterator[Adapted]:
    """Adapt ``params [M, ...]`` to M tasks by gradient steps, or by ``adam``; yield before the first step and after each.

    ``rates`` returns those of a step, counted from 1; ``clip`` is that of :func:`inner_step`; ``exploring`` makes the policies
    that collect the next support from the supports so far, where the adapted ones do not.
    """
    if budget.episodes is not None:
        support = support.model_copy(update={"rollouts": budget.episodes})
    env_steps, batch, seen = 0, None, list[Transitions]()
    yield Adapted(0, 0, 0, NetworkPolicy(learner, params))
    for k in range(1, budget.steps + 1):
        if batch is None or support.fresh:
            collecting = None if exploring is None else exploring(seen, num_tasks(task))
            batch = collect_support(learner, params, family, task, support, rng, collecting)
            if exploring is not None:
                seen.append(batch)
            env_steps += round(float(batch.weight.sum()) / batch.weight.shape[0])
        now = rates(k)
        if adam is None:
            params = inner_step(learner, params, now, batch, returns, clip=clip)
        else:
            gradients = support_gradients(learner, params, list(now), batch, returns)
            params = adam.step(params, gradients if clip is None else clipped(gradients, clip), now)
        if k == budget.steps and (lost := diverged(params)):  # weights stay so, and a look at each step would take its time
            note(f"after adaptation step {k} the weights of {lost} of {len(first(params))} tasks are not finite")
        yield Adapted(k, k, env_steps, NetworkPolicy(learner, params))


def cost_of_steps(
    learner: Learner,
    params: Params,
    family: Family,
    tasks: int,
    support: SupportConfig,
    returns: ReturnsConfig,
    episodes: int,
) -> float:
    """Return the bytes that gradient steps on so many tasks take from ``params``, one network, and then acting in them.

    Args:
        learner: the learner.
        params: the weights of one network.
        family: of the tasks.
        tasks: M.
        support: what is collected.
        returns: the estimate of its returns.
        episodes: played at a time by the adapted policy of each task.
    """
    weights = {name: value.expand(tasks, *value.shape) for name, value in without_content(params).items()}

    def step_on(length: int) -> float:
        batch = blank_transitions(family.spec, tasks, length, support.rollouts)
        return peak(lambda: support_gradients(learner, weights, list(weights), batch, returns))

    step = extrapolated(step_on, support.steps, LENGTHS)
    obs = blank_transitions(family.spec, tasks, 1, episodes).obs[:, 0]
    act = peak(lambda: learner.policy(weights, obs).mode())
    networks = 2 * tasks * size_of(params)  # of this step and the next
    collected = 2 * tasks * support.steps * support.rollouts * family.spec.bytes_per_transition
    return networks + max(collected / 2 + step, collected, act) + tasks * episodes * bytes_per_env(family)


def fine_tune(
    learner: Learner,
    params: Params,
    lr: float,
    family: Family,
    task: Task,
    budget: Budget,
    support: SupportConfig,
    returns: ReturnsConfig,
    rng: torch.Generator,
) -> Iterator[Adapted]:
    """Adapt all of ``params [M, ...]`` by Adam at rate ``lr``: the reference without meta-training, if weights are fresh."""
    rates = {name: torch.tensor(lr, device=value.device) for name, value in params.items()}
    return adapt(learner, params, lambda step: rates, family, task, budget, support, returns, rng, Adam())

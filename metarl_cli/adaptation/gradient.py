"""The inner loop: collect experience on M tasks, then learn each task by a few gradient steps.

    theta_{k+1} = theta_k - alpha * grad L_support(theta_k)          (MAML, Finn 2017, arXiv:1703.03400, equation 1)

Experience is collected outside torch.func on batched tensors; gradients are taken inside, one ``vmap(grad(loss))`` over
the tasks. The learner is any that has ``act``, ``targets`` and ``loss`` for one task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, vmap

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.exploration import explorer
from metarl_cli.experience.returns import Returns
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Adaptation, Family, Learner, Params, Task, Transitions
from metarl_cli.networks.optimizers import Adam
from metarl_cli.networks.q_network import in_head, in_structure


class SupportConfig(StrictModel):
    """The experience a task is adapted on."""

    rollouts: int = Field(gt=0, description="episodes collected")
    steps: int = Field(gt=0, description="longest part of an episode that is used [steps]")
    epsilon: float = Field(ge=0, le=1, description="share of random actions")
    repeat: int = Field(gt=0, description="steps a random action lasts; more reach further (temporally extended exploration)")
    fresh: bool = Field(description="collect again, with the adapted policy, before every adaptation step")


class InnerConfig(StrictModel):
    """How a task is adapted to."""

    steps: int = Field(ge=0, description="K, inner steps in meta-training; 0 is plain multi-task training")
    rule: Literal["sgd", "adam"] = Field(description="the inner update; adam is for fine-tuning, not meta-training")
    lr: float = Field(gt=0, description="inner learning rate, the first value where rates are learned")
    rates: Literal["fixed", "tensor", "parameter"] = Field(
        description="what has a learned rate: nothing, each tensor (MAML++), each parameter (Meta-SGD)"
    )
    order: Literal[1, 2] = Field(description="order of the meta-gradient; 1 ignores second derivatives (FOMAML)")
    scope: Literal["all", "head", "context"] = Field(
        description="what the inner loop moves: all weights, the head (ANIL), the context inputs (CAVIA)"
    )
    returns: Returns = Field(description="what the support teaches")
    scratch_lr: float = Field(gt=0, description="Adam's rate for the reference that starts from fresh weights")
    support: SupportConfig


def expand(params: Params, num_tasks: int) -> Params:
    """A copy of the weights for each task, ``[M, ...]``: a view, so that gradients sum back."""
    return {name: value.expand(num_tasks, *value.shape) for name, value in params.items()}


def adapted_names(params: Params, scope: str) -> list[str]:
    """The weights the inner loop moves."""
    params = {name: value for name, value in params.items() if not in_structure(name)}
    chosen = {"all": list(params), "head": [name for name in params if in_head(name)], "context": ["context"]}
    names = [name for name in chosen[scope] if name in params]
    if not names:
        raise ValueError(f"the network has no weights for scope={scope}; set learner.network.context above 0")
    return names


def initial_rates(params: Params, config: InnerConfig) -> Params:
    """A learning rate for each adapted weight: a scalar, or one of the weight's shape (rates=parameter)."""
    names = adapted_names(params, config.scope)
    full = config.rates == "parameter"
    return {k: torch.full_like(params[k] if full else params[k].new_empty(()), config.lr) for k in names}


def support_gradients(learner: Learner, params: Params, names: list[str], support: Transitions, returns: Returns) -> Params:
    """The gradient of each task's support loss in the weights ``names``; everything leads with [M].

    The targets come from the network that adapts. The inner gradient holds them fixed, the semi-gradient of DQN; an outer
    gradient goes through them, as they too depend on the initialisation.
    """
    target = vmap(lambda p, b: learner.targets(p, p, b, returns))(params, support)

    def loss(moving: Params, fixed: Params, batch: Transitions, target: Tensor) -> Tensor:
        return learner.loss({**fixed, **moving}, batch, target)

    gradients: Params = vmap(grad(loss))({k: params[k] for k in names}, params, support, target)
    return gradients


def inner_step(
    learner: Learner, params: Params, rates: Params, support: Transitions, returns: Returns, order: int = 2
) -> Params:
    """One gradient step on each task's support; differentiable in ``params`` and ``rates`` (``order`` 2)."""
    gradients = support_gradients(learner, params, list(rates), support, returns)
    if order == 1:
        gradients = {k: g.detach() for k, g in gradients.items()}
    return {k: p - rates[k] * gradients[k] if k in rates else p for k, p in params.items()}


def collect_support(
    learner: Learner, params: Params, family: Family, task: Task, config: SupportConfig, rng: torch.Generator
) -> Transitions:
    """One episode in each of ``rollouts`` fresh environments per task, cut at ``steps`` -> ``[M, T, N, ...]``."""
    env = family.make(task, config.rollouts, rng)
    return collect(env, explorer(learner, params, config.epsilon, config.repeat, rng), config.steps, one_episode=True)


@torch.no_grad()
def adapt(
    learner: Learner,
    params: Params,
    rates: Params,
    family: Family,
    task: Task,
    steps: int,
    support: SupportConfig,
    returns: Returns,
    rng: torch.Generator,
    adam: Adam | None = None,
) -> Iterator[Adaptation]:
    """Adapt ``params [M, ...]`` to M tasks, by plain gradient steps or by ``adam``; yields before the first and after each."""
    env_steps, batch = 0, None
    yield Adaptation(0, 0, 0, params)
    for k in range(1, steps + 1):
        if batch is None or support.fresh:
            batch = collect_support(learner, params, family, task, support, rng)
            env_steps += round(float(batch.weight.sum()) / batch.weight.shape[0])
        if adam is None:
            params = inner_step(learner, params, rates, batch, returns)
        else:
            params = adam.step(params, support_gradients(learner, params, list(rates), batch, returns), rates)
        yield Adaptation(k, k, env_steps, params)


def adapt_from_scratch(
    learner: Learner,
    family: Family,
    task: Task,
    steps: int,
    support: SupportConfig,
    returns: Returns,
    lr: float,
    rng: torch.Generator,
) -> Iterator[Adaptation]:
    """The same learner from fresh weights, an own draw for each task, by Adam: what no meta-training achieves."""
    networks = [learner.init(rng) for _ in range(len(next(iter(task.values()))))]
    params = {k: torch.stack([network[k] for network in networks]) for k in networks[0]}
    rates = {k: torch.tensor(lr, device=v.device) for k, v in params.items()}
    return adapt(learner, params, rates, family, task, steps, support, returns, rng, Adam())

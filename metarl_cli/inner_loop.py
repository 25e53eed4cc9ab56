"""The inner loop: collect experience on M tasks, then learn each task by a few gradient steps.

    theta_{k+1} = theta_k - alpha * grad L_support(theta_k)          (MAML, Finn 2017, arXiv:1703.03400, equation 1)

Experience is collected outside torch.func on batched tensors; gradients are taken inside, one ``vmap(grad(loss))`` over
the tasks. The learner is any that has ``act``, ``targets`` and ``loss`` for one task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, vmap

from metarl_cli.inner_optimizers import Adam
from metarl_cli.networks import in_head, in_structure
from metarl_cli.types import Adaptation, Env, Family, Learner, Params, Returns, StrictModel, Task, Transitions


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


Act = Callable[[Tensor], Tensor]  # obs [M, N, ...] -> action [M, N]


def explorer(learner: Learner, params: Params, epsilon: float | Tensor, repeat: int, rng: torch.Generator) -> Act:
    """Epsilon-greedy where a random action lasts ``repeat`` steps; the share of random steps stays epsilon.

    Temporally extended exploration (Dabney 2021, arXiv:2006.01782) with a fixed duration. ``params`` lead with [M];
    ``epsilon`` is that of all tasks, or of each, ``[M]``.
    """
    share = epsilon[:, None] if isinstance(epsilon, Tensor) else epsilon
    if repeat == 1:
        return lambda obs: learner.act(params, obs, epsilon, rng)
    held: Tensor | None = None
    left: Tensor | None = None

    def act(obs: Tensor) -> Tensor:
        nonlocal held, left
        anything = learner.act(params, obs, 1.0, rng)
        if held is None or left is None:
            held, left = anything, torch.zeros(obs.shape[:2], dtype=torch.long, device=obs.device)
            # as if it had always explored: some are in the middle of a random action, of which 0 to repeat - 1 steps are left
            part = torch.randint(repeat, left.shape, generator=rng, device=obs.device)
            left = torch.where(torch.rand(left.shape, generator=rng, device=obs.device) < share, part, left)
        starts = share / (share + repeat * (1 - share))  # of idle steps, so that a share epsilon of all is random
        begin = (left == 0) & (torch.rand(left.shape, generator=rng, device=obs.device) < starts)
        left = torch.where(begin, repeat, left)
        wide = (...,) + (None,) * (anything.dim() - 2)
        held = torch.where(begin[wide], anything, held)
        if learner.spec.masked:  # what was chosen may no longer be allowed
            legal = obs[..., -learner.spec.num_actions :].gather(-1, held[..., None])[..., 0] > 0
            held = torch.where(legal, held, anything)
        random = left > 0
        left = (left - 1).clamp(min=0)
        return (
            held
            if not isinstance(epsilon, Tensor) and epsilon >= 1
            else torch.where(random[wide], held, learner.act(params, obs, 0.0))
        )

    return act


def collect(env: Env, act: Act, steps: int, one_episode: bool = False) -> Transitions:
    """Act ``steps`` times in every environment -> ``[M, T, N, ...]``.

    ``one_episode`` gives no weight to what follows the first end of each environment's episode.
    """
    rows = []
    weight = torch.ones(env.obs.shape[:2], device=env.obs.device)
    for _ in range(steps):
        obs = env.obs
        action = act(obs)
        step = env.step(action)
        ended = step.terminated | step.truncated
        rows.append(Transitions(obs, action, step.reward, step.next_obs, step.terminated, ended, weight))
        if one_episode:
            weight = weight * ~ended
    return Transitions(*(torch.stack(field, 1) for field in zip(*rows, strict=True)))


@torch.no_grad()
def run_episodes(
    family: Family, task: Task, act: Act, episodes: int, rng: torch.Generator, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """One full episode in each of ``episodes`` fresh environments per task, cut at ``steps`` if given.

    Returns the undiscounted returns and the lengths [steps], ``[M, episodes]`` both.
    """
    env = family.make(task, episodes, rng)
    total, length = torch.zeros(2, *env.obs.shape[:2], device=env.obs.device)
    running = torch.ones_like(total, dtype=torch.bool)
    for _ in range(steps or family.spec.horizon):
        step = env.step(act(env.obs))
        total += step.reward * running
        length += running
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            break
    return total, length


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

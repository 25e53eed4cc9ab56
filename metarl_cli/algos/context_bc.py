"""Behaviour cloning with a context: one policy for all tasks, given what an encoder infers from demonstrations.

    min over π, q of   -E log π(a | s, z) + beta KL(q || N(0, I)),     z ~ q(z | demonstrations)

over other demonstrations of the same task than those that z is inferred from. No environment is stepped but by whoever
demonstrates, and no reward is inferred: it is the baseline of ``pemirl``, with the same encoder and policy. One-shot imitation
(Duan 2017, arXiv:1703.07326) in the words of PEARL's posterior.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import check_given, widened
from metarl_cli.adaptation.contexts import (
    ContextEncoder,
    ContextPolicy,
    ContextualConfig,
    DividedDemonstrations,
    Fit,
    FitConfig,
    with_context,
)
from metarl_cli.adaptation.demonstrations import FittingConfig, Learned, imitate
from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.adaptation.inference import divergence
from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.adaptation.vectors import Vectors
from metarl_cli.config.footprint import blank_transitions, factor, peak, size_of, without_content
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Budget,
    Context,
    Demonstrations,
    Family,
    Footprint,
    Holding,
    Params,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.learners.policy import PolicyGradient
from metarl_cli.networks.discriminator import mean_over_steps
from metarl_cli.networks.optimizers import Adam, backward
from metarl_cli.networks.stacked import detached, expand, fresh, load_params
from metarl_cli.seeding import Streams, numpy_rng, torch_rng


class Config(ContextualConfig):
    """Cloning with a context."""

    fit: FitConfig = Field(description="of the encoder and the policy")
    scratch: FittingConfig = Field(
        description="the reference that clones the demonstrations of a task alone, with fresh weights"
    )


class ContextBC(Algorithm):
    """A policy for all tasks that copies, and is given the context of each.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the learner has no policy with a likelihood.
        UserError: if observations are images.
    """

    adapts_by = "demonstrations"
    saved = ("fit", "rng")

    def __init__(self, config: Config, context: Context):
        if not isinstance(context.learner, PolicyGradient):
            raise ValueError("a policy is learned here: learner=policy")
        self.config, self.context, self.family = config, context, context.family
        self.rng = Streams(context.seed, "init", "support", device=context.device)
        self.plain = context.learner
        self.learner = self.plain.rebuilt(widened(self.family.spec, (1.0,) * config.context.size))
        self.encoder = ContextEncoder(config.context, self.family.spec)
        self.params = self.encoder.init(self.rng["init"]) | self.learner.init(self.rng["init"])
        self.measured = self.encoder.start(context.device)
        self.fit = Fit(config.fit, self.params)
        self.iteration = self.env_steps = 0
        self.task = self.draw()

    def draw(self) -> Task:
        """Draw the training tasks of this iteration."""
        rng = numpy_rng(self.context.seed, "tasks", "train", str(self.iteration))
        return self.family.sample_tasks(self.config.tasks, "train", rng)

    @override
    def cost_of_training(self) -> Footprint:
        config, spec = self.config, self.family.spec
        most = max(config.demonstrations)
        support = RolloutsConfig(rollouts=most, steps=config.context.steps, epsilon=0.0, repeat=1)
        vectors = self.encoder.blank(config.tasks, support)
        noise = without_content(torch.zeros(config.tasks, config.context.size))
        query, params = blank_transitions(spec, config.tasks, config.context.steps, config.query), without_content(self.params)
        numbers = {"algo.tasks": config.tasks, "algo.context.steps": config.context.steps}
        key = factor(**numbers, algo__query=config.query, algo__demonstrations=most)
        demonstrated = 2 * config.tasks * (most + config.query) * spec.horizon * spec.bytes_per_transition
        update = peak(lambda: backward(self.cloned(params, vectors, noise, query), list(params.values())))
        return Footprint([Holding("learner.network", 3 * size_of(self.params))], [Holding(key, demonstrated + update)])

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        spec = self.family.spec
        return 2 * tasks * max(self.config.demonstrations) * spec.horizon * spec.bytes_per_transition

    def train_step(self) -> dict[str, float]:
        """Have the tasks demonstrated, and make the policy, given the context of some of it, more likely to do the rest."""
        config, rng = self.config, self.rng["support"]
        self.task, num = self.draw(), config.demonstrations[self.iteration % len(config.demonstrations)]
        divided = DividedDemonstrations(demonstrate(self.family, self.task, num + config.query, rng), num, config.context.steps)
        self.env_steps += divided.env_steps
        if self.iteration == 0:
            self.measured = self.encoder.measure(divided.query)
        vectors = self.encoder.read(self.measured, divided.support)
        noise = torch.randn(config.tasks, config.context.size, generator=rng, device=rng.device)
        progress = self.iteration / self.context.iterations
        loss, norm = self.fit(lambda: self.cloned(self.params, vectors, noise, divided.query), progress)
        self.iteration += 1
        return {"loss/query": loss, "grad/norm": norm}

    def cloned(self, params: Params, support: Vectors, noise: Tensor, query: Transitions) -> Tensor:
        """Return the loss, a mean over tasks."""
        mean, deviation = self.encoder.posterior(params, support)
        log_prob = self.learner.log_prob(expand(params, len(mean)), with_context(query, mean + deviation * noise))
        return (self.config.context.beta * divergence(mean, deviation) - mean_over_steps(log_prob, query.weight)).mean()

    # -- adaptation

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies before the first demonstration, and after some numbers of them."""
        params = detached(self.params)

        def learn(given: Demonstrations | None) -> Learned:
            context = self.encoder.contexts(params, self.measured, task, given)
            return (lambda where, seen: ContextPolicy(self.learner, params, context)), 0

        return imitate(learn, self.family, family, task, budget, rng)

    @override
    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Yield policies with fresh weights that copy the demonstrations of their own task alone."""
        start = fresh(self.plain, num_tasks(task), torch_rng(rng.initial_seed(), "fresh", device=rng.device))
        config = self.config.scratch
        rates = {name: torch.tensor(config.lr, device=value.device) for name, value in start.items()}

        def learn(given: Demonstrations | None) -> Learned:
            params, adam = start, Adam()
            for _ in range(config.steps if given else 0):
                assert given is not None
                params = adam.step(params, self._likelihood_gradients(params, given.experience), rates)
            return (lambda where, seen: NetworkPolicy(self.plain, params)), config.steps if given else 0

        return imitate(learn, self.family, None, task, budget, rng)

    def _likelihood_gradients(self, params: Params, seen: Transitions) -> Params:
        """Return the gradient of each task's own loss in its weights ``[M, ...]``."""
        with torch.enable_grad():
            moving = {name: value.detach().requires_grad_() for name, value in params.items()}
            loss = -mean_over_steps(self.plain.log_prob(moving, seen), seen.weight).sum()
            return dict(zip(moving, torch.autograd.grad(loss, list(moving.values())), strict=True))

    @override
    def load_policy(self, state: State, task: Task) -> ContextPolicy:
        check_given(state["given"], task, self.config.context.size)
        return ContextPolicy(self.learner, detached(self.params), state["given"])

    # -- saving

    @override
    def weights(self) -> State:
        return {"params": detached(self.params), "measured": self.measured}

    @override
    def load_weights(self, state: State) -> None:
        load_params(self.params, state["params"])
        load_params(self.measured, state["measured"])


Algo = ContextBC

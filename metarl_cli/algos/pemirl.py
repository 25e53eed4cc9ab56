"""PEMIRL: infer from demonstrations what a task wants, as a context of one reward and one policy for all tasks.

Meta inverse RL with probabilistic context variables (Yu 2019, arXiv:1909.09314), by an adversarial learner:

    context     z ~ q(z | demonstrations) = N(0, I) prod_n N(mu(x_n), sigma(x_n)²)             x_n: transitions without rewards
    reward      D = exp f / (exp f + π),  f(s, s' | z) = r(s' | z) + γ V(s' | z) - V(s | z)    tells demonstrations from π
    policy      max over π of the returns of  log D - log (1 - D) = f(s, s' | z) - log π(a | s, z)
    encoder     min of D's loss, of which z is an input, + beta KL(q || N(0, I)) - info log q(z | what π(. | z) did)

A new task: z is the mean of q after its demonstrations, the policy π(. | z) acts, and r(. | z) says what is wanted. A policy
with fresh weights that learns from r alone is the second way to use it: ``from scratch`` in the tables.

Actions count as the environment takes them, clipped: the entropy of what is clipped away would be a reward for nothing.

Differs from the paper: the posterior is a product over transitions in place of a recurrent network's, so that any number of
demonstrations narrows it; D judges other demonstrations than those that z was inferred from; the information term teaches the
encoder alone, and is no reward of the policy, which has PPO's steps in place of TRPO's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
from metarl_cli.adaptation.demonstrations import Learned, imitate
from metarl_cli.adaptation.gradient import NetworkPolicy, loss_gradients, prepare_each
from metarl_cli.adaptation.inference import divergence
from metarl_cli.adaptation.support import RolloutsConfig, collect_rollouts
from metarl_cli.adaptation.vectors import Vectors
from metarl_cli.algos.on_policy import OnPolicy, OuterConfig, mean_return
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import LENGTHS, blank_transitions, extrapolated, factor, peak, size_of, without_content
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.experience.returns import ReturnsConfig
from metarl_cli.interfaces import (
    Adapted,
    Batch,
    Budget,
    Context,
    Demonstrations,
    Family,
    Footprint,
    Holding,
    Params,
    Policy,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.networks.discriminator import Discriminator, RewardConfig
from metarl_cli.networks.optimizers import Adam, backward
from metarl_cli.networks.stacked import detached, detached_groups, expand, fresh, load_groups
from metarl_cli.progress import timed
from metarl_cli.seeding import torch_rng


class ScratchConfig(StrictModel):
    """The policy with fresh weights that learns from an inferred reward alone, each task on its own."""

    iterations: int = Field(gt=0, description="steps of Adam, each on new episodes")
    rollouts: int = Field(gt=0, description="episodes of a step")
    lr: float = Field(gt=0, description="Adam's learning rate")
    returns: ReturnsConfig = Field(description="discount and lambda of its advantages")


class Config(ContextualConfig):
    """PEMIRL."""

    rollouts: int = Field(gt=0, description="episodes of each task by the policy, which the discriminator tells from the query")
    reward: RewardConfig
    info: float = Field(ge=0, description="weight of the likelihood of a context after what its policy did [loss per nat]")
    fit: FitConfig = Field(description="of the encoder, the reward and its shaping")
    returns: ReturnsConfig = Field(description="discount and lambda of advantages")
    outer: OuterConfig = Field(description="of the policy")
    scratch: ScratchConfig | None = Field(description="null: none is trained, which takes long where simulators are slow")


class Evidence(NamedTuple):
    """What the discriminator of an iteration learns from."""

    support: Vectors  # what contexts are inferred from
    noise: Tensor  # [M, Z] of the contexts
    query: Transitions  # [M, T, N, ...] other demonstrations
    query_log_prob: Tensor  # [M, T, N] under the policy
    collected: Transitions  # [M, T, N, ...] by the policy
    collected_log_prob: Tensor  # [M, T, N] under the policy
    collected_vectors: Vectors  # the same as the encoder reads it
    context: Tensor  # [M, Z] with which the policy acted


class PEMIRL(OnPolicy):
    """A reward and a policy for all tasks, which are given the context of each.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the learner is no policy gradient.
        UserError: if observations are images.
    """

    adapts_by = "demonstrations"
    saved = ("optimizer", "rng", "fit")

    def __init__(self, config: Config, context: Context):
        super().__init__(config.tasks, config.outer, config.outer.rule == "trpo", context)
        spec, size, init = self.family.spec, config.context.size, self.rng["init"]
        self.config, self.plain = config, self.learner
        self.learner = self.plain.rebuilt(widened(spec, (1.0,) * size))
        self.encoder = ContextEncoder(config.context, spec)
        gamma = self.plain.config.gamma if config.returns.gamma is None else config.returns.gamma
        self.discriminator = Discriminator(config.reward, spec, size, gamma)
        self.learned: Params = self.learner.init(init)
        self.irl_params = self.encoder.init(init) | self.discriminator.init(init)  # the encoder, the reward and its shaping
        self.measured = self.encoder.start(context.device)
        self.ready(list(self.learned.values()), "the gradient")
        self.fit = Fit(config.fit, self.irl_params)

    @override
    def cost_of_training(self) -> Footprint:
        config, each = self.config, self.family.spec.bytes_per_transition
        steps, tasks = config.context.steps, config.tasks
        most = max(config.demonstrations) + config.query
        chunk = min(config.outer.chunk or tasks, tasks)
        blank = without_content(torch.zeros(tasks, config.context.size))
        irl_params, params = without_content((self.irl_params, self.learned))

        def explaining(length: int) -> float:
            query, collected = (blank_transitions(self.family.spec, tasks, length, n) for n in (config.query, config.rollouts))
            nums = max(config.demonstrations), config.rollouts
            vectors = [self.encoder.blank(tasks, self._rollouts(n).model_copy(update={"steps": length})) for n in nums]
            seen = Evidence(vectors[0], blank, query, query.reward, collected, collected.reward, vectors[1], blank)
            return peak(lambda: backward(self.irl_loss(irl_params, seen), list(irl_params.values())))

        def imitating(length: int) -> float:
            wide = blank_transitions(self.learner.spec, chunk, length, config.rollouts)
            batch = prepare_each(self.learner, expand(detached(params), chunk), expand(detached(params), chunk), wide)
            return peak(lambda: self.largest_part(params, [batch]))

        numbers = {"algo.tasks": tasks, "algo.rollouts": config.rollouts, "algo.context.steps": steps}
        of_rollouts = factor(**numbers)
        of_demonstrations = factor(**numbers, algo__query=config.query, algo__demonstrations=max(config.demonstrations))
        weights = 4 * size_of(self.learned) + 3 * size_of(self.irl_params)
        return Footprint(
            [
                Holding(of_rollouts, 3 * tasks * config.rollouts * steps * each),
                Holding("learner.network", weights),
            ],
            [
                Holding(of_demonstrations, 2 * tasks * most * self.family.spec.horizon * each),
                Holding(of_demonstrations, extrapolated(explaining, steps, LENGTHS)),
                Holding(of_rollouts, extrapolated(imitating, steps, LENGTHS)),
            ],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        each, config = self.family.spec.bytes_per_transition, self.config
        demonstrated = 2 * tasks * max(config.demonstrations) * self.family.spec.horizon * each
        if config.scratch is None:
            return demonstrated
        weights = expand(without_content(self.plain.init(torch_rng(0, "blank"))), tasks)
        rollouts = config.scratch.rollouts

        def step_on(length: int) -> float:
            seen = blank_transitions(self.family.spec, tasks, length, rollouts)
            batch = prepare_each(self.plain, weights, weights, seen)
            return peak(lambda: loss_gradients(self.plain, weights, list(weights), batch))

        return demonstrated + extrapolated(step_on, config.context.steps, LENGTHS) + 4 * size_of(weights)

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        scratch = self.config.scratch
        numbers = {"algo.context.steps": self.config.context.steps}
        return numbers if scratch is None else numbers | {"algo.scratch.rollouts": scratch.rollouts}

    def _rollouts(self, num: int) -> RolloutsConfig:
        return RolloutsConfig(rollouts=num, steps=self.config.context.steps, epsilon=0.0, repeat=1)

    # -- one iteration

    @override
    def collect(self) -> tuple[list[Batch], dict[str, float]]:
        """Have the tasks demonstrated, act with their contexts, and have D classify both; its output is the reward."""
        config, params, rng = self.config, expand(detached(self.learned), self.num), self.rng["support"]
        num = config.demonstrations[self.iteration % len(config.demonstrations)]
        divided = DividedDemonstrations(demonstrate(self.family, self.task, num + config.query, rng), num, config.context.steps)
        if self.iteration == 0:
            self.measured = self.encoder.measure(divided.query)
        support = self.encoder.read(self.measured, divided.support)
        noise = torch.randn(self.num, config.context.size, generator=rng, device=rng.device)
        with torch.no_grad():
            mean, deviation = self.encoder.posterior(self.irl_params, support)
            context = mean + deviation * noise
            policy, rollouts = ContextPolicy(self.learner, params, context), self._rollouts(config.rollouts)
            collected = collect_rollouts(policy, self.learner.actions, self.family, divided.task, rollouts, self.rng["query"])
            log_prob = self.log_prob(params, collected, context)
            query_log_prob = self.log_prob(params, divided.query, context)
        self.env_steps += divided.env_steps + int(collected.weight.sum())
        vectors = self.encoder.read(self.measured, collected)
        seen = Evidence(support, noise, divided.query, query_log_prob, collected, log_prob, vectors, context)
        metrics = self._fit_irl(seen) | {"train/episode_return": mean_return(Batch(collected, {}))}
        with torch.no_grad():
            reward = self.discriminator.advantage(self.irl_params, collected, context) - log_prob
            wide, returns = with_context(collected._replace(reward=reward), context), config.returns
            return [prepare_each(self.learner, params, params, wide, returns.gamma, returns.lambda_)], metrics

    def log_prob(self, params: Params, seen: Transitions, context: Tensor) -> Tensor:
        """Return log π ``[M, T, N]`` of actions as the environment takes them."""
        taken = seen._replace(action=self.learner.actions.clip(seen.action))
        return self.learner.log_prob(params, with_context(taken, context))

    @timed("discriminator")
    def _fit_irl(self, seen: Evidence) -> dict[str, float]:
        loss, norm = self.fit(lambda: self.irl_loss(self.irl_params, seen), self.iteration / self.context.iterations)
        return {"loss/discriminator": loss, "grad/norm_discriminator": norm}

    def irl_loss(self, irl_params: Params, seen: Evidence) -> Tensor:
        """Return the loss of the discriminator and of the encoder, a mean over tasks."""
        mean, deviation = self.encoder.posterior(irl_params, seen.support)
        context = mean + deviation * seen.noise
        classification = self.discriminator.loss(
            irl_params, context, seen.query, seen.query_log_prob, seen.collected, seen.collected_log_prob
        )
        again, spread = self.encoder.posterior(irl_params, seen.collected_vectors)
        unlikely = (((seen.context - again) / spread).square() / 2 + spread.log()).sum(-1)
        return (classification + self.config.context.beta * divergence(mean, deviation) + self.config.info * unlikely).mean()

    @override
    def query_policies(self, learned: Params, batches: list[Batch]) -> Params:
        return expand(learned, len(batches[-1].experience.reward))

    @override
    def loss(self, learned: Params, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        return self.surrogate(self.query_policies(learned, batches), batches[-1])

    # -- adaptation

    def reward(self, place: Tensor, context: Tensor) -> Tensor:
        """Return the inferred rewards ``[M, ...]`` of reaching ``place [M, ..., O]`` in tasks of contexts ``[M, Z]``."""
        return self.discriminator.reward(self.irl_params, place, context)

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies before the first demonstration, and after some numbers of them."""
        params = detached(self.learned)

        def learn(given: Demonstrations | None) -> Learned:
            context = self.encoder.contexts(self.irl_params, self.measured, task, given)

            def act(where: Task, seen: Demonstrations | None) -> Policy:
                return ContextPolicy(self.learner, params, context, self.reward, (self.family, where), seen)

            return act, 0

        return imitate(learn, self.family, family, task, budget, rng)

    @override
    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted] | None:
        """Yield policies with fresh weights that have learned from the inferred reward, in their environments."""
        config = self.config.scratch
        if config is None:
            return None
        start = fresh(self.plain, num_tasks(task), torch_rng(rng.initial_seed(), "fresh", device=rng.device))

        def learn(given: Demonstrations | None) -> Learned:
            if given is None:
                return (lambda where, seen: NetworkPolicy(self.plain, start)), 0
            context = self.encoder.contexts(self.irl_params, self.measured, task, given)

            def act(where: Task, seen: Demonstrations | None) -> Policy:
                chance = torch_rng(rng.initial_seed(), "rewarded", device=rng.device)
                return NetworkPolicy(self.plain, self.rewarded(config, start, where, context, chance))

            return act, config.iterations

        return imitate(learn, self.family, None, task, budget, rng)

    @torch.no_grad()
    def rewarded(self, config: ScratchConfig, params: Params, task: Task, context: Tensor, rng: torch.Generator) -> Params:
        """Return the weights ``[M, ...]`` after steps of a policy gradient on the inferred rewards."""
        adam, returns = Adam(), config.returns
        rates = {name: torch.tensor(config.lr, device=value.device) for name, value in params.items()}
        rollouts = self._rollouts(config.rollouts)
        for _ in range(config.iterations):
            policy = NetworkPolicy(self.plain, params)
            seen = collect_rollouts(policy, self.plain.actions, self.family, task, rollouts, rng)
            seen = seen._replace(reward=self.reward(seen.next_obs, context))
            batch = prepare_each(self.plain, params, params, seen, returns.gamma, returns.lambda_)
            params = adam.step(params, loss_gradients(self.plain, params, list(params), batch)[0], rates)
        return params

    @override
    def load_policy(self, state: State, task: Task) -> Policy:
        check_given(state["given"], task, self.config.context.size)
        return ContextPolicy(self.learner, detached(self.learned), state["given"], self.reward, (self.family, task))

    # -- saving

    @override
    def weights(self) -> State:
        return detached_groups(self._groups())

    @override
    def load_weights(self, state: State) -> None:
        load_groups(self._groups(), state)

    def _groups(self) -> dict[str, Params]:
        return {"policy": self.learned, "judge": self.irl_params, "measured": self.measured}


Algo = PEMIRL

"""A learned exploration: policies that collect supports for what they reveal of a task (DREAM: Liu 2021, arXiv:2008.02790).

    belief        N(mean, deviation²) of the numbers mu that describe the task: precision-weighted, over transitions x_1 .. x_n
    estimator     min  |mu - mean_n|²                       over all n, on supports of fresh tasks that the explorers collect
    reward        |mu - mean_{n-1}|² - |mu - mean_n|²       of transition n: how much nearer the estimate comes by it
    explorers     Q-learning with this reward: Q_i(s, a | step, belief before the support)   for rollout i

The explorers and the policy that adapts are trained beside each other, and neither waits for the other. The rollouts of a
support run at the same time, each by a network of its own. A reward is for what no rollout has revealed before, so that they
divide the task among themselves. Transitions count in the order of time, those of one step in the order of the rollouts.

Differs from the paper: the numbers that describe the task take the place of a learned encoding with a bottleneck; the errors of
the mean that of a log-likelihood; a support has many rollouts instead of one episode.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import join, knowledge_of, widened
from metarl_cli.adaptation.gradient import clipped, loss_gradients, prepare_each
from metarl_cli.adaptation.inference import EncoderConfig, PosteriorEncoder
from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.adaptation.vectors import Vectors
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import (
    blank_network,
    blank_transitions,
    bytes_per_env,
    extrapolated,
    factor,
    peak,
    size_of,
    without_content,
)
from metarl_cli.errors import UserError
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.rollout import collect
from metarl_cli.experience.schedules import cosine, linear
from metarl_cli.interfaces import (
    Context,
    Footprint,
    Holding,
    Learner,
    Params,
    Policy,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.networks.compiling import compiled
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, first, fresh, load_params, select_rows
from metarl_cli.networks.target import follow
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng


class ExplorerConfig(StrictModel):
    """A learned exploration and its training."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each layer over a transition")
    supports: int = Field(gt=0, description="supports of a task in training, each collected after the one before")
    tasks: int = Field(gt=0, description="fresh tasks of an iteration, each with all its supports")
    estimates: int = Field(gt=0, description="updates of the estimator per iteration")
    estimate_tasks: int = Field(gt=0, description="tasks per update of the estimator")
    estimate_lr: float = Field(gt=0, description="Adam's learning rate for the estimator")
    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of rollouts that explore, initial and final")
    epsilon_iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    repeat: int = Field(gt=0, description="steps for which a random action is repeated")
    reward: float = Field(
        gt=0,
        description="reward for a decrease of the mean squared error by 1, whatever the learner's reward_scale",
    )
    gamma: float = Field(ge=0, lt=1, description="discount per step")
    updates: int = Field(gt=0, description="updates of the explorer per iteration")
    rollouts: int = Field(gt=0, description="rollouts per network and update")
    lr: float = Field(gt=0, description="Adam's learning rate for the explorer")
    final_lr: float = Field(ge=0, description="final learning rates, as a share of the initial ones (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the explorer's gradient")
    polyak: float = Field(gt=0, le=1, description="step size of the slow copies towards the weights, per update")


class ExploringPolicy(Policy):
    """Policies that collect the rollouts of one support, each with its own network.

    Where the rollouts are collected in several parts, each part goes on with the networks after those of the last part; more
    rollouts than networks begin again with the first network.

    Args:
        learner: the learner that defines the networks.
        params: their weights ``[N, ...]``, in the order of the rollouts.
        belief: what is known of each task before the support, ``[M, C]``.
        steps: the longest rollout.
    """

    def __init__(self, learner: Learner, params: Params, belief: Tensor, steps: int):
        self.learner, self.params, self.belief, self.steps = learner, params, belief, steps
        self.stochastic, self.started = learner.stochastic, 0

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        own = torch.arange(self.started, self.started + num_envs, device=self.belief.device) % len(first(self.params))
        self.started += num_envs
        return {"rng": None if greedy else rng, "step": 0, "params": select_rows(self.params, own)}

    @override
    @torch.no_grad()
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        given = situation(self.belief, state["step"], self.steps)[:, None].expand(*obs.shape[:2], -1)
        policy = self.learner.policy(state["params"], join(given, obs).transpose(0, 1))
        action = policy.mode() if state["rng"] is None else policy.sample(state["rng"])
        return action.transpose(0, 1), {**state, "step": state["step"] + 1}


def situation(belief: Tensor, step: int, steps: int) -> Tensor:
    """Return what an explorer is given beside the observation: the belief before the support, and the step, ``[M, C]``."""
    time = torch.eye(steps, device=belief.device)[min(step, steps - 1)]
    return torch.cat([belief, time.expand(len(belief), -1)], -1)


class Sums(NamedTuple):
    """The product of normal distributions, one per transition, of the numbers that describe each of M tasks."""

    weighted: Tensor  # [M, n, F] sums of means times precisions, after each of n transitions
    precision: Tensor  # [M, n, F] sums of precisions

    def mean(self) -> Tensor:
        """Return the means ``[M, n, F]``, with a standard normal prior."""
        return self.weighted / (1 + self.precision)

    def last(self) -> Sums:
        """Return the sums after all transitions."""
        return Sums(self.weighted[:, -1:], self.precision[:, -1:])

    def belief(self) -> Tensor:
        """Return means and deviations after all transitions, ``[M, 2 F]``."""
        return torch.cat([self.mean()[:, -1], (1 + self.precision[:, -1]).rsqrt()], -1)


def nothing(num: int, size: int, device: torch.device) -> Sums:
    """Return the sums of ``num`` tasks before the first transition."""
    return Sums(*torch.zeros(2, num, 1, size, device=device))


class Explorer:
    """A learned exploration.

    Args:
        config: see :class:`ExplorerConfig`.
        support: the rollouts of a support; its ``epsilon`` and ``repeat`` hold outside of the explorer's own training.
        context: of the algorithm that it is a part of.

    Raises:
        UserError: if observations are images, or the family has no numbers that describe a task.
    """

    env_steps = 0  # of the latest iteration

    def __init__(self, config: ExplorerConfig, support: RolloutsConfig, context: Context):
        self.config, self.support, self.context = config, support, context
        self.family, self.device = context.family, context.device
        if len(self.family.spec.obs_shape) != 1 or self.family.spec.pixels:
            raise UserError(f"an explorer cannot read images, observations of {list(self.family.spec.obs_shape)}")
        streams = ("explorer", "explorer supports", "explorer minibatch")
        self.rng = Streams(context.seed, *streams, device=self.device)
        some = self.family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "explorer"))
        facts = knowledge_of(self.family, some, "an explorer").shape[1]
        self.encoder = PosteriorEncoder(EncoderConfig(hidden=config.hidden), self.family.spec, facts, 0.0, 0.1)
        self.learner = context.learner.rebuilt(widened(self.family.spec, (1.0,) * (2 * facts + support.steps)))
        networks = fresh(self.learner, support.rollouts, self.rng["explorer"])
        learned = {"explorer": networks, "estimator": self.encoder.init(self.rng["explorer"])}
        self.learned = {group: {k: v.requires_grad_() for k, v in params.items()} for group, params in learned.items()}
        self.slow = {group: {k: v.detach().clone() for k, v in params.items()} for group, params in learned.items()}
        self.measured = self.encoder.start(self.device)
        self.optimizers = {
            "explorer": torch.optim.Adam(list(learned["explorer"].values()), lr=config.lr, fused=True),
            "estimator": torch.optim.Adam(list(learned["estimator"].values()), lr=config.estimate_lr, fused=True),
        }
        self.explore = compiled(self._explore, "the gradient of the explorer", context.compile)
        self.estimate = compiled(self._estimate, "the gradient of the explorer's estimator", context.compile)

    # -- what is known

    def cumulative(self, params: Params, vectors: Vectors, before: Sums | None = None) -> Sums:
        """Return the sums after each transition of a support, in the order of time, added to those ``before`` it."""
        weighted, precision = self.encoder.factors(params, vectors)
        sums = Sums(weighted.cumsum(1), precision.cumsum(1))
        return sums if before is None else Sums(*(x + y for x, y in zip(sums, before, strict=True)))

    def belief(self, supports: list[Transitions], num: int) -> Tensor:
        """Return what is known of each of ``num`` tasks after some supports: means and deviations ``[num, 2 F]``."""
        sums = nothing(num, self.encoder.outputs, self.device)
        for support in supports:
            sums = self.cumulative(self.slow["estimator"], self.encoder.read(self.measured, support), sums).last()
        return sums.belief()

    @torch.no_grad()
    def policy(self, supports: list[Transitions], num: int) -> ExploringPolicy:
        """Return the policy that collects the support after some others, in ``num`` tasks."""
        return self._policy(self.belief(supports, num))

    def _policy(self, belief: Tensor) -> ExploringPolicy:
        return ExploringPolicy(self.learner, self.slow["explorer"], belief, self.support.steps)

    # -- training

    @timed("explorer")
    def train_step(self, iteration: int) -> dict[str, float]:
        """Collect supports of fresh tasks, then train the estimator and the explorer on them.

        Args:
            iteration: of the run, from 0.
        """
        config = self.config
        drawing = numpy_rng(self.context.seed, "tasks", "explorer", str(iteration))
        task = self.family.sample_tasks(config.tasks, "train", drawing)
        known, epsilon = knowledge_of(self.family, task), linear(config.epsilon, iteration / config.epsilon_iterations)
        sums, self.env_steps = nothing(config.tasks, known.shape[1], self.device), 0
        supports, reads = list[Transitions](), list[Vectors]()
        for _ in range(config.supports):
            belief = sums.belief()
            support = self._collect(self._policy(belief), task, epsilon)
            self.env_steps += int(support.weight.sum())
            if iteration == len(reads) == 0:
                self.measured = self.encoder.measure(support)
            vectors = self.encoder.read(self.measured, support)
            with torch.no_grad():
                after = self.cumulative(self.slow["estimator"], vectors, sums)
            supports.append(self._rewarded(support, belief, known, sums, after))
            reads.append(vectors)
            sums = after.last()
        share = cosine(config.final_lr, iteration / self.context.iterations)
        for name, lr in (("explorer", config.lr), ("estimator", config.estimate_lr)):
            self.optimizers[name].param_groups[0]["lr"] = share * lr
        vectors = Vectors(*(torch.cat(field, 1) for field in zip(*reads, strict=True)))
        errors, rng = [], self.rng["explorer minibatch"]
        for _ in range(config.estimates):
            rows = torch.randint(config.tasks, (config.estimate_tasks,), generator=rng, device=self.device)
            part = Vectors(*(x[rows] for x in vectors)), known[rows]
            errors.append(self._update("estimator", *self.estimate(self.learned["estimator"], *part)))
        together = Transitions(*(torch.cat(field, 2) for field in zip(*supports, strict=True)))
        losses = [
            self._update("explorer", *self.explore(self.learned["explorer"], self.slow["explorer"], self._drawn(together)))
            for _ in range(config.updates)
        ]
        error = float((sums.mean()[:, 0] - known).square().mean())
        metrics = {"train/explorer_error": error, "train/explorer_epsilon": epsilon}
        metrics["loss/explorer"] = float(torch.stack(losses).mean())
        return metrics | {"loss/explorer_estimate": float(torch.stack(errors).mean())}

    def _collect(self, policy: Policy, task: Task, epsilon: float) -> Transitions:
        """Collect a support; a share ``epsilon`` of its rollouts explore, each with its own share of random actions."""
        shape, rng = (num_tasks(task), self.support.rollouts), self.rng["explorer supports"]
        some, more = torch.rand(2, *shape, generator=rng, device=self.device)
        share = (some < epsilon) * (epsilon + more).clamp(max=1)
        exploring = EpsilonGreedy(policy, self.learner.actions, share, self.config.repeat)
        env = self.family.make(task, self.support.rollouts, rng)
        return collect(env, exploring, exploring.start(self.support.rollouts, rng), self.support.steps, one_episode=True)

    @staticmethod
    def cost_of_building(support: RolloutsConfig, context: Context, key: str) -> Footprint:
        """Return the memory of the networks, one for each rollout, which are given the step; ``key`` is that of the support."""
        spec = context.family.spec

        def network(steps: int) -> float:
            return size_of(blank_network(context.learner.rebuilt(widened(spec, (1.0,) * steps))))

        largest = "rollouts" if support.rollouts > support.steps else "steps"
        return Footprint([Holding(f"{key}.{largest}", 4 * support.rollouts * extrapolated(network, support.steps))])

    def cost_of_training(self) -> Footprint:
        """Return the memory of :meth:`train_step`."""
        config, support, spec = self.config, self.support, self.learner.spec
        learned, slow = without_content((self.learned, self.slow))
        some = self.encoder.blank(config.estimate_tasks, support)
        known = some.weight.new_zeros(config.estimate_tasks, self.encoder.outputs)
        fitting = config.supports * peak(lambda: self._estimate(learned["estimator"], some, known))
        batch = blank_transitions(spec, support.rollouts, support.steps, config.rollouts)
        exploring = peak(lambda: self._explore(learned["explorer"], slow["explorer"], batch))
        each = 4 * self.encoder.size + 3 * spec.bytes_per_transition  # of a transition: as it is read, and for the explorer
        collected = config.supports * support.steps * support.rollouts * config.tasks * each
        envs = config.tasks * support.rollouts * bytes_per_env(self.family)
        numbers = {"algo__explorer__supports": config.supports, "algo__explorer__rollouts": config.rollouts}
        key = factor(algo__explorer__tasks=config.tasks, algo__explorer__estimate_tasks=config.estimate_tasks, **numbers)
        return Footprint(
            [Holding("algo.explorer.hidden", 3 * size_of((self.learned, self.slow)))],
            [Holding(key, collected + envs + max(fitting, exploring, self.cost_of_reading(config.tasks)))],
        )

    def cost_of_reading(self, tasks: int) -> float:
        """Return the bytes that reading a support of each of so many tasks takes."""
        params, vectors = without_content(self.slow["estimator"]), self.encoder.blank(tasks, self.support)
        return size_of(tuple(vectors)) + peak(lambda: self.cumulative(params, vectors))

    def _rewarded(self, support: Transitions, belief: Tensor, known: Tensor, before: Sums, after: Sums) -> Transitions:
        """Return a support as the experience ``[N, T, M, ...]`` of the explorers: with what they are given, and rewards."""
        errors = (torch.cat([before.mean(), after.mean()], 1) - known[:, None]).square().mean(-1)
        reward = (errors[:, :-1] - errors[:, 1:]).view_as(support.reward) * self.config.reward
        reward = reward / getattr(self.learner.config, "reward_scale", 1.0)  # by which a learner multiplies rewards
        steps, rollouts = support.reward.shape[1:]
        given = torch.stack([situation(belief, t, steps) for t in range(steps + 1)], 1)
        given = given[:, :, None].expand(-1, -1, rollouts, -1)
        last = support.ended.clone()
        last[:, -1] = True  # nothing after a rollout counts, whether its episode terminated or not
        obs, next_obs = join(given[:, :-1], support.obs), join(given[:, 1:], support.next_obs)
        wide = support._replace(obs=obs, next_obs=next_obs, reward=reward, terminated=last)
        return Transitions(*(x.transpose(0, 2) for x in wide))

    def _drawn(self, experience: Transitions) -> Transitions:
        """Draw tasks of the explorers' experience ``[N, T, M, ...]``."""
        rng, most = self.rng["explorer minibatch"], experience.reward.shape[2]
        columns = torch.randint(most, (self.config.rollouts,), generator=rng, device=self.device)
        return Transitions(*(x[:, :, columns] for x in experience))

    def _update(self, name: str, loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """Take a gradient step of the explorers or the estimator; returns the loss."""
        params = self.learned[name]
        for weight, gradient in zip(params.values(), gradients, strict=True):
            weight.grad = gradient
        self.optimizers[name].step()
        follow(self.slow[name], params, self.config.polyak)
        return loss.detach()

    def _estimate(self, params: Params, vectors: Vectors, known: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the mean squared error of the estimates along supports, and its gradient."""
        loss = (self.cumulative(params, vectors).mean() - known[:, None]).square().mean()
        return loss, backward(loss, list(params.values()))

    def _explore(self, params: Params, slow: Params, experience: Transitions) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss of Q-learning on rollouts ``[N, T, B, ...]``, and the clipped gradient of each network."""
        with torch.no_grad():
            batch = prepare_each(self.learner, params, slow, experience, self.config.gamma)
        gradients, losses = loss_gradients(self.learner, params, list(params), batch)
        gradients = clipped(gradients, self.config.clip)
        return losses.mean(), [x.contiguous() for x in gradients.values()]  # fused Adam reads no strides

    # -- saving

    def weights(self) -> State:
        """Return what was learned."""
        return {"learned": {k: detached(v) for k, v in self.learned.items()}, "slow": self.slow, "measured": self.measured}

    def load_weights(self, state: State) -> None:
        """Take over what :meth:`weights` returned."""
        for group, params in self.learned.items():
            load_params(params, state["learned"][group])
            load_params(self.slow[group], state["slow"][group])
        load_params(self.measured, state["measured"])

    def state_dict(self) -> State:
        """Return what training goes on from beside the weights."""
        return {"rng": self.rng.state_dict()} | {name: each.state_dict() for name, each in self.optimizers.items()}

    def load_state_dict(self, state: State) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.rng.load_state_dict(state["rng"])
        for name, each in self.optimizers.items():
            each.load_state_dict(state[name])

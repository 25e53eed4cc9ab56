"""One network for all tasks, Q(s, a | c): the references that do not adapt, by what c it is given of the task.

| algorithm: c | value | what it is |
|---|---|---|
| robust_dqn: nothing | | the best policy that cannot know the task (domain randomisation: Tobin 2017, arXiv:1703.06907) |
| stacked_dqn: the last k steps of the episode | history=k | the same with a short memory |
| oracle_dqn: the numbers that describe the task | knowledge=true | universal policy: Yu 2017, arXiv:1702.02453 |

    loss    mean over tasks i, their transitions:  (r + gamma Q^-(s', argmax_a Q(s', a | c_i) | c_i) - Q(s, a | c_i))²

Training is DQN on all tasks at once: every iteration each of them collects some steps, and updates draw transitions of many
tasks. What the network is given is put before the observation; the learner is built for the wider one. With ``learner=sac`` it
is a soft actor-critic, whose loss takes the place of the one above.

A policy that cannot know the task has to commit where tasks contradict each other. Transitions that are drawn evenly do not let
it: the tasks that it fails have short episodes, all of whose states are near the start, where they outweigh the tasks that it
solves. In the gradient of the mean return a task counts by the steps that its episode lasts: ``weighting=1`` draws it so.
Greater powers commit harder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import ConditionedPolicy, History, check_given, join, knowledge_of, widened
from metarl_cli.adaptation.learning import Learning
from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import (
    COPIES,
    META,
    blank_network,
    blank_transitions,
    bytes_per_env,
    extrapolated,
    factor,
    peak,
    size_of,
    without_content,
)
from metarl_cli.experience.episodes import Episodes
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.replay import Replay
from metarl_cli.experience.rollout import collect
from metarl_cli.experience.schedules import cosine, linear
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Budget,
    Context,
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
from metarl_cli.networks.compiling import compiled
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, load_params
from metarl_cli.networks.target import follow
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng
from metarl_cli.spaces import Distribution


class TrainingConfig(StrictModel):
    """DQN on many tasks at once."""

    tasks: int = Field(gt=0, description="training tasks, drawn once")
    history: int = Field(ge=0, description="k, the latest steps of the episode that the network is given; 0: none")
    envs: int = Field(gt=0, description="environments per task; episodes continue across iterations")
    steps: int = Field(gt=0, description="steps per iteration in each environment")
    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, initial and final")
    epsilon_iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    repeat: int = Field(gt=0, description="steps for which a random action is repeated")
    capacity: int = Field(gt=0, description="replay per task [transitions]")
    weighting: float = Field(
        ge=0, description="p: a task is drawn in proportion to the mean length of its episodes to the power p; 0: all alike"
    )
    updates: int = Field(gt=0, description="gradient updates per iteration")
    update_tasks: int = Field(gt=0, description="tasks drawn for an update")
    batch: int = Field(gt=0, description="transitions per drawn task and update")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the gradient")
    polyak: float = Field(gt=0, le=1, description="step size of the slow copy towards the weights, per update")
    use_average: bool = Field(description="test with the slow copy, a running average of the weights")

    @model_validator(mode="after")
    def _check_capacity(self) -> TrainingConfig:
        if self.envs * self.steps > self.capacity:
            raise ValueError("capacity must hold at least the envs x steps of one iteration")
        return self


class Config(TrainingConfig):
    """One network for all tasks, which does not adapt."""

    knowledge: bool = Field(description="whether the network is given the numbers that describe the task (an oracle)")
    extrapolate: bool = Field(
        description="give the network a task beyond the range of the training tasks as it is; false: as the nearest within it"
    )


class Conditioned(Algorithm):
    """One Q-network for all tasks.

    A subclass gives it something else: it overrides ``num_given``, ``given`` and what they need.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        UserError: if the network is to be given something beside images, or numbers of the task that its family does not have.
    """

    adapts_by: ClassVar[Literal["nothing", "inference"]] = "nothing"  # a subclass may infer what it is given
    replays = gives_noise = True
    saved: ClassVar[tuple[str, ...]] = ("optimizer", "rng", "env", "replay", "episodes")
    streams: ClassVar[tuple[str, ...]] = ("init", "episodes", "exploration", "minibatch")

    def __init__(self, config: TrainingConfig, context: Context):
        self.config, self.context, self.family, self.device = config, context, context.family, context.device
        self.rng = Streams(context.seed, *self.streams, device=context.device)
        self.task = self.family.sample_tasks(config.tasks, "train", numpy_rng(context.seed, "tasks", "train"))
        self.facts = self.known(self.task)
        self.history = History(config.history, self.family.spec)
        self.kept = widened(self.family.spec, self.history.scale)  # what the replay keeps
        spec = widened(self.family.spec, (1.0,) * self.num_given(), self.history.scale)
        self.learner = context.learner.rebuilt(spec)
        self.params = {name: value.requires_grad_() for name, value in self.init(self.rng["init"]).items()}
        self.slow = {name: value.detach().clone() for name, value in self.params.items()}
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=config.lr, fused=True)
        self.env = self.family.make(self.task, config.envs, self.rng["episodes"])
        self.histories = self.history.start((config.tasks, config.envs), self.device)  # [M, N, H] in each environment
        self.replay = Replay(config.tasks, config.capacity, self.device)
        self.episodes = Episodes()
        self.processes, self.shares = context.processes, config.update_tasks
        self.gradient = compiled(self._gradient, "the gradient", context.compile)
        self.iteration = self.env_steps = 0

    # -- what the network is given

    def num_given(self) -> int:
        """Return C, how many numbers of a task the network is given."""
        return self.facts.shape[1]

    def known(self, task: Task, family: Family | None = None) -> Tensor:
        """Return what the network is given of each of M tasks, ``[M, C]``."""
        if isinstance(self.config, Config) and self.config.knowledge:
            return knowledge_of(family or self.family, task)
        return torch.zeros(num_tasks(task), 0, device=self.device)

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights of all that is learned by the loss."""
        return self.learner.init(rng)

    def prepare(self) -> Policy:
        """Return the policy that collects this iteration's experience."""
        return self.policy(detached(self.params), self.facts)

    def sources(self, rows: Tensor, own: slice) -> Any:
        """Return tensors from which :meth:`given` makes what the network is given of training tasks.

        Args:
            rows: the tasks ``[m]`` of an update.
            own: those among them whose sources are returned; random draws do not depend on it.
        """
        return self.facts[rows[own]]

    def given(self, params: Params, sources: Any) -> tuple[Tensor, Tensor]:
        """Return what the network is given of m tasks ``[m, C]``, and a loss to add; both differentiable in ``params``."""
        return sources, sources.new_zeros(())

    def policy(self, params: Params, given: Tensor, spread: Tensor | None = None) -> ConditionedPolicy:
        """Return the policy of the network; see :class:`ConditionedPolicy`."""
        return ConditionedPolicy(self.learner, params, given, self.history, spread)

    def inferring(self, support: RolloutsConfig, read: Callable[[Transitions], Tensor]) -> Learning | None:
        """Return how what is given of a task follows from a support, which ``read`` reads; None with a history, a memory."""
        if self.history.steps:
            return None
        params, given = self.tested(), torch.zeros(1, self.num_given(), device=self.device)

        def act(now: Params, obs: Tensor) -> Distribution:
            return self.learner.policy(params, join(now["given"][:, None].expand(*obs.shape[:2], -1), obs))

        def step(number: Tensor, now: Params, seen: Transitions) -> Params:
            return {"given": read(seen)}

        return Learning({"given": given}, step, act, self.learner.actions, support, True, 1)

    def tested(self) -> Params:
        """Return the weights that are tested."""
        return self.slow if self.config.use_average else detached(self.params)

    # -- memory

    @override
    @classmethod
    def cost_of_building(cls, config: TrainingConfig, context: Context) -> Footprint:
        family, envs = context.family, config.tasks * config.envs

        def with_history(steps: int) -> float:
            wide = widened(family.spec, History(steps, family.spec).scale) if steps else family.spec
            return 2 * size_of(blank_network(context.learner.rebuilt(wide)))

        network = with_history(0)
        return Footprint(
            [
                Holding(factor(algo__envs=config.envs, algo__tasks=config.tasks), envs * bytes_per_env(family)),
                Holding("learner.network", network),
                Holding("algo.history", extrapolated(with_history, config.history) - network),
            ]
        )

    @override
    def cost_of_training(self) -> Footprint:
        config, each = self.config, self.kept.bytes_per_transition
        own = -(-config.update_tasks // self.processes.size)
        replay, drawn = config.tasks * config.capacity * each, config.update_tasks * config.batch * each
        noise = torch.zeros(own, 1, config.batch, self.learner.draws, self.learner.actions.size, device=META)
        params, slow, sources = without_content((self.params, self.slow, self.blank_sources(own)))
        update = peak(lambda: self._gradient(params, slow, blank_transitions(self.kept, own, 1, config.batch), sources, noise))
        capacity = factor(algo__capacity=config.capacity, algo__tasks=config.tasks)
        window = factor(algo__steps=config.steps, algo__envs=config.envs, algo__tasks=config.tasks)
        return Footprint(
            [Holding(capacity, replay), Holding("learner.network", 3 * size_of(self.params))],
            [
                Holding(factor(**self.numbers_of_update()), update + 2 * drawn),
                Holding(capacity, COPIES * replay),
                Holding(window, 3 * config.tasks * config.envs * config.steps * each),
            ],
        )

    def numbers_of_update(self) -> dict[str, int]:
        """Return the numbers of the configuration, by key, which the memory of an update grows with."""
        return {"algo.batch": self.config.batch, "algo.update_tasks": self.config.update_tasks}

    def blank_sources(self, num: int) -> Any:
        """Return tensors like :meth:`sources` of so many tasks; their content does not matter."""
        return torch.zeros(num, self.num_given())

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        obs = blank_transitions(self.learner.spec, tasks, 1, episodes).obs[:, 0]
        params = without_content(self.slow)
        acting = peak(lambda: self.learner.policy(params, obs).mode())
        return acting + 2 * size_of(obs) + tasks * episodes * bytes_per_env(self.family)

    # -- one iteration

    def train_step(self) -> dict[str, float]:
        """Collect steps on every task with the network, then update it on transitions of many tasks."""
        config = self.config
        metrics = self._collect(self.prepare())
        share = self._shares()
        rate = config.lr * cosine(config.final_lr, self.iteration / self.context.iterations)
        self.optimizer.param_groups[0]["lr"] = rate
        measured = torch.stack([torch.stack(self._update(share)) for _ in range(config.updates)]).mean(0)
        self.iteration += 1
        metrics["loss/query"], metrics["grad/norm"] = measured.tolist()
        return metrics | {"train/lr": rate}

    @torch.no_grad()
    def _collect(self, greedy: Policy) -> dict[str, float]:
        config = self.config
        epsilon = linear(config.epsilon, self.iteration / config.epsilon_iterations)
        policy = EpsilonGreedy(greedy, self.learner.actions, epsilon, config.repeat)
        state = policy.start(config.envs, self.rng["exploration"])
        state["policy"]["history"] = self.histories  # episodes go on
        collected = collect(self.env, policy, state, config.steps)
        stored, self.histories = self.history.along(self.histories, collected)
        self.replay.add(stored)
        self.env_steps += collected.reward.numel()
        return {"train/epsilon": epsilon, **self.episodes.summary(collected)}

    def _shares(self) -> Tensor:
        """Return the weight ``[M]`` by which each task is drawn."""
        assert self.replay.data is not None
        ends = self.replay.data.ended[:, : len(self.replay)].float().mean(1)
        return (1 / torch.maximum(ends, 1 / self.family.horizons(self.task))) ** self.config.weighting

    @timed("update")
    def _update(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Take a gradient step, shared by all processes; returns the loss and the norm of the gradient."""
        config, weights = self.config, list(self.params.values())
        own = self.processes.shard(config.update_tasks)
        rows = torch.multinomial(share, config.update_tasks, replacement=True, generator=self.rng["minibatch"])
        batch = self.replay.sample(rows, config.batch, self.rng["minibatch"], own)
        sources, noise = self.sources(rows, own), self.noise(config.update_tasks)[own]
        loss, gradients = self.gradient(self.params, self.slow, batch, sources, noise)
        if self.processes.size > 1:
            part = len(batch.reward) / config.update_tasks
            loss, *gradients = self.processes.sum([part * value for value in (loss, *gradients)])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(weights, config.clip)
        self.optimizer.step()
        follow(self.slow, self.params, config.polyak)
        return loss.detach(), norm

    def noise(self, tasks: int) -> Tensor:
        """Return the noise ``[m, 1, B, draws, D]`` of the actions that the learner draws in an update of m tasks."""
        shape = tasks, 1, self.config.batch, self.learner.draws, self.learner.actions.size
        return torch.randn(shape, generator=self.rng["minibatch"], device=self.device)

    def _gradient(
        self, params: Params, slow: Params, batch: Transitions, sources: Any, noise: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the loss on transitions ``[m, 1, B, ...]`` of m tasks, and its gradient in the weights."""
        given, more = self.given(params, sources)
        with torch.no_grad():
            learner = self.learner.with_noise(noise.flatten(0, 2)[None])
            targets = learner.prepare(params, slow, together(batch, given.detach()))
        loss = self.learner.loss(params, targets._replace(experience=together(batch, given))) + more
        return loss, backward(loss, list(params.values()))

    # -- adaptation

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Return the policy: it does not adapt.

        Raises:
            UserError: if the network is given numbers of the task that ``family`` does not have.
        """
        assert isinstance(self.config, Config)
        given = self.within(self.known(task, family), self.config.extrapolate)
        yield Adapted(0, 0, 0, self.policy(self.tested(), given))

    def within(self, given: Tensor, extrapolate: bool) -> Tensor:
        """Move what is given of tasks ``[M, C]`` into the range of the training tasks, unless the network may extrapolate."""
        return given if extrapolate else given.clamp(self.facts.amin(0), self.facts.amax(0))

    @override
    def load_policy(self, state: State, task: Task) -> ConditionedPolicy:
        given, spread = state["given"], state["spread"]
        for numbers in (given,) if spread is None else (given, spread):
            check_given(numbers, task, self.num_given())
        return self.policy(self.tested(), given, spread)

    # -- saving

    @override
    def drop_replay(self) -> None:
        self.replay.clear()

    @override
    def weights(self) -> State:
        return {"params": detached(self.params), "slow": self.slow}

    @override
    def load_weights(self, state: State) -> None:
        load_params(self.params, state["params"])
        load_params(self.slow, state["slow"])

    @override
    def state_dict(self) -> State:
        return super().state_dict() | {"seen": self.histories}

    @override
    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.histories = state["seen"].to(self.device)


def together(batch: Transitions, given: Tensor) -> Transitions:
    """Return transitions ``[m, 1, B, ...]`` of m tasks as those of one, ``[1, m B, ...]``, with what is ``given [m, C]``."""
    before = given[:, None, None].expand(*batch.reward.shape, -1)
    wide = batch._replace(obs=join(before, batch.obs), next_obs=join(before, batch.next_obs))
    return Transitions(*(x.flatten(0, 2)[None] for x in wide))


Algo = Conditioned

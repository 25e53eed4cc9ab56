"""The lifetime of a DQN on one task, from the first step on, with exploration, replay and a target network (Mnih 2015).

R learners are rows of one tensor, each with its own hyper-parameters:

| hyper-parameter | meaning |
|---|---|
| lr | learning rate |
| gamma | discount |
| epsilon_end, epsilon_decay | final share of random actions, and the share of a lifetime over which it falls from 1 |
| batch | transitions per update; ``largest_batch`` are drawn for each learner, and the surplus has weight 0 |
| target_every | updates between copies of the network to the target network |

One adaptation step consists of ``iterations``, each with ``env_steps`` in every environment and ``updates``. With ``shared``,
the individuals that learn the same task share one replay (SEARL, Franke 2021, arXiv:2009.01555).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.adaptation.gradient import NetworkPolicy, adapted_names, loss_gradients, prepare_each
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import blank_transitions, peak, size_of
from metarl_cli.errors import UserError
from metarl_cli.evolution.interfaces import Cost, Traits
from metarl_cli.evolution.lifetimes.traits import rates
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.replay import Replay
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Family, Learner, Params, State, Task, Transitions, device_of, num_tasks
from metarl_cli.networks.optimizers import SGD, Adam, InnerOptimizer, Learned, clip_rows
from metarl_cli.networks.q_network import grow, in_structure
from metarl_cli.networks.stacked import broadcast_rows, first, flatten, repeat_per_task, select_rows, to_device, unflatten
from metarl_cli.progress import timed


class HyperConfig(StrictModel):
    """Hyper-parameters that are not in the genome."""

    lr: float = Field(gt=0, description="learning rate")
    gamma: float = Field(ge=0, lt=1, description="discount")
    epsilon_end: Share = Field(description="final share of random actions")
    epsilon_decay: float = Field(gt=0, le=1, description="share of a lifetime over which epsilon falls to epsilon_end")
    batch: float = Field(ge=1, description="transitions per update")
    target_every: float = Field(ge=1, description="updates between copies to the target network")


class Config(StrictModel):
    """The length of a lifetime, and the DQN in it."""

    steps: int = Field(gt=0, description="adaptation steps of a lifetime, after which fitness is measured")
    iterations: int = Field(gt=0, description="iterations per adaptation step")
    envs: int = Field(gt=0, description="environments per learner")
    env_steps: int = Field(gt=0, description="steps per iteration in each environment")
    updates: int = Field(gt=0, description="gradient updates per iteration")
    warmup: int = Field(ge=0, description="first iterations, which only collect")
    largest_batch: int = Field(gt=0, description="transitions drawn per update; a learner uses as many of them as its batch")
    capacity: int = Field(gt=0, description="replay per learner, or per task if shared [transitions]")
    shared: bool = Field(description="one replay per task, shared by all individuals")
    repeat: int = Field(gt=0, description="steps for which a random action is repeated")
    rule: Literal["sgd", "adam"] = Field(description="update rule, if the genome has no optimizer")
    clip: float = Field(gt=0, description="largest norm of each learner's gradient")
    hyper: HyperConfig

    @model_validator(mode="after")
    def _check_sizes(self) -> Config:
        if self.envs * self.env_steps > self.capacity:
            raise ValueError("capacity must hold at least the envs x env_steps of one iteration")
        if self.hyper.batch > self.largest_batch:
            raise ValueError(f"hyper.batch ({self.hyper.batch:g}) must not be above largest_batch ({self.largest_batch})")
        return self


class DQNLife:
    """The lifetime of a DQN."""

    inherits = True
    traits = frozenset({"rates", "hyper", "optimizer"})

    def __init__(self, config: Config, learner: Learner, family: Family, device: torch.device):
        self.config, self.learner, self.family, self.steps, self.device = config, learner, family, config.steps, device
        self.default: Traits = {"hyper": {k: torch.tensor([v], device=device) for k, v in config.hyper.model_dump().items()}}

    def without_genome(self) -> DQNLife:
        """Return the lifetime itself: its settings stay in force after its end."""
        return self

    def cost(self, params: Params, copies: int) -> Cost:
        """Return the memory of the replay, of the weights with target and moments, and of an update."""
        config, spec, rows = self.config, self.family.spec, len(first(params))
        replays = rows // copies if config.shared else rows
        each = spec.bytes_per_transition
        window = 2 * rows * config.envs * config.env_steps * each
        batch = blank_transitions(spec, rows, 1, config.largest_batch)

        def update() -> object:
            prepared = prepare_each(self.learner, params, params, batch)
            return loss_gradients(self.learner, params, adapted_names(params, "all"), prepared)

        passing = peak(update) + 3 * size_of(params) + rows * config.largest_batch * each
        return Cost(replays * config.capacity * each + 4 * size_of(params), max(passing, window))

    def sizes(self, key: str) -> dict[str, int]:
        """Return the sizes of the replay, the window and the batch, by their keys."""
        names = ("capacity", "largest_batch", "envs", "env_steps")
        return {f"{key}.{name}": getattr(self.config, name) for name in names}

    def at(self, family: Family, episodes: int | None) -> DQNLife:
        """Return the same lifetime in the environments of another family.

        Raises:
            UserError: if a number of support episodes is given, which is so for an environment of one's own alone.
        """
        if episodes is not None:
            text = f"this algorithm explores {self.config.envs} environments at a time, and not for a number of episodes"
            raise UserError(f"{text}; algo=es_dqn and algo=maml_dqn adapt to one environment, this one to tasks of its env")
        return DQNLife(self.config, self.learner, family, self.device)

    def begin(self, params: Params, traits: Traits, task: Task, rng: torch.Generator, copies: int = 1) -> Life:
        """Begin R lifetimes on the tasks ``[R]``; see :class:`Life` for the arguments."""
        return Life(self, params, traits, task, rng, copies)


class Life:
    """R DQNs in the course of their lifetimes.

    Args:
        lifetime: the configuration, the learner and the family.
        params: weights of the networks, ``[R, ...]`` or ``[P, ...]``.
        traits: hyper-parameters and optional traits of each learner, ``[R]`` each.
        task: the task of each learner, ``[R]`` each.
        rng: the generator of environments, exploration and minibatches.
        copies: P, used if they share replay: rows p M + m of all p learn task m.
    """

    def __init__(self, lifetime: DQNLife, params: Params, traits: Traits, task: Task, rng: torch.Generator, copies: int = 1):
        config = lifetime.config
        device = device_of(task)
        self.lifetime, self.traits, self.rng, self.rows = lifetime, traits, rng, num_tasks(task)
        self.copies = copies if config.shared else 1
        self.params = repeat_per_task(params, self.rows)
        self.target = self.params
        self.env = lifetime.family.make(task, config.envs, rng)
        self.replay = Replay(self.rows // self.copies, config.capacity, device)
        rule: type[SGD] | type[Adam] = SGD if config.rule == "sgd" else Adam
        self.optimizer: InnerOptimizer = Learned(traits["optimizer"]) if "optimizer" in traits else rule()
        self.places = torch.arange(self.rows, device=device) % (self.rows // self.copies)  # [R] replay row of each learner
        self.env_steps = torch.zeros(self.rows, dtype=torch.long, device=device)
        self.iteration = self.gradient_steps = 0

    def inherit(self, parents: Tensor, traits: Traits, structure: Params) -> None:
        """Copy weights, optimiser state and replay from row ``parents[r]`` into row r (PBT's exploit), with new traits."""
        self.params, self.target = select_rows(self.params, parents), select_rows(self.target, parents)
        self.optimizer.select_rows(parents)
        if not self.lifetime.config.shared:
            self.replay.select_tasks(parents)
        self.traits = traits
        if isinstance(self.optimizer, Learned):
            self.optimizer.weights = traits["optimizer"]
        if structure:
            self.params, self.target = grow(self.params, structure), grow(self.target, structure)

    @timed("learning")
    @torch.no_grad()
    def learn(self) -> None:
        """Run the iterations of one adaptation step."""
        for _ in range(self.lifetime.config.iterations):
            self._iterate()

    @property
    def progress(self) -> float:
        """Return the completed share of a lifetime; above 1 after its end."""
        return self.iteration / (self.lifetime.config.steps * self.lifetime.config.iterations)

    def _iterate(self) -> None:
        """Collect experience with every learner, then update the learners from replay."""
        config, hyper, learner = self.lifetime.config, self.traits["hyper"], self.lifetime.learner
        share = (self.progress / hyper["epsilon_decay"]).clamp(max=1)
        epsilon = (1 + (hyper["epsilon_end"] - 1) * share).expand(self.rows)
        policy = EpsilonGreedy(NetworkPolicy(learner, self.params), learner.actions, epsilon, config.repeat)
        experience = collect(self.env, policy, policy.start(config.envs, self.rng), config.env_steps)
        self.env_steps += config.envs * config.env_steps
        if self.copies > 1:  # [P M, T, N, ...] -> [M, T, P N, ...]
            experience = Transitions(
                *(x.reshape(self.copies, -1, *x.shape[1:]).movedim(0, 2).flatten(2, 3) for x in experience)
            )
        self.replay.add(experience)
        if self.iteration >= config.warmup:
            for _ in range(config.updates):
                self._update()
        self.iteration += 1

    def _update(self) -> None:
        """Take one gradient step of every learner, each with its own batch size."""
        lifetime, config, hyper = self.lifetime, self.lifetime.config, self.traits["hyper"]
        experience = self.replay.sample(self.places, config.largest_batch, self.rng)
        index = torch.arange(config.largest_batch, device=experience.weight.device)
        in_batch = index < hyper["batch"].round().clamp(min=1)[:, None, None]
        experience = experience._replace(weight=experience.weight * in_batch)
        batch = prepare_each(lifetime.learner, self.params, self.target, experience, hyper["gamma"].expand(self.rows))
        gradients, _ = loss_gradients(lifetime.learner, self.params, adapted_names(self.params, "all"), batch)
        gradients = unflatten(clip_rows(flatten(gradients), config.clip)[0], gradients)
        progress = min(self.progress, 1.0)
        steps = rates(hyper["lr"], self.traits.get("rates"), gradients, progress)
        self.params = self.optimizer.step(self.params, gradients, steps, progress)
        self.gradient_steps += 1
        copy = (self.gradient_steps % hyper["target_every"].round() == 0).expand(self.rows)
        self.target = {
            k: v if in_structure(k) else torch.where(broadcast_rows(copy, v), self.params[k], v) for k, v in self.target.items()
        }

    def state_dict(self) -> State:
        """Return the state of the learners, their environments and their replay."""
        return {
            "params": self.params,
            "target": self.target,
            "optimizer": self.optimizer.state_dict(),
            "env": self.env.state_dict(),
            "rng": self.rng.get_state(),
            "replay": self.replay.state_dict(),
            "traits": self.traits,
            "env_steps": self.env_steps,
            "iteration": self.iteration,
            "gradient_steps": self.gradient_steps,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        moved = ("params", "target", "traits", "optimizer", "env_steps")  # the others bring their own state to the device
        state = state | to_device({name: state[name] for name in moved}, self.env_steps.device)
        self.params, self.target, self.traits = state["params"], state["target"], state["traits"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.env.load_state_dict(state["env"])
        self.rng.set_state(state["rng"].cpu())
        self.replay.load_state_dict(state["replay"])
        self.env_steps, self.iteration = state["env_steps"], state["iteration"]
        self.gradient_steps = state["gradient_steps"]


Lifetime = DQNLife

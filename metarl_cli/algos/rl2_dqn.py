"""RL² by Q-learning: a recurrent Q-network over whole trials, learned from replayed ones.

    x_t = [s_t, a_{t-1}, r_{t-1}, d_{t-1}]    h_t = memory(h_{t-1}, x_t)    a_t = argmax_a Q(h_t, x_t, a)   h lasts all trial

The memory is the learning algorithm (Duan 2016, arXiv:1611.02779) and DQN learns it: recurrent (Hausknecht 2015,
arXiv:1507.06527), on stretches of trials that start from a stored memory and burn in (R2D2: Kapturowski 2019), or on whole
trials (Ni 2022, arXiv:2110.05038, whose shortcut from the inputs to the head is here too). Targets are Q(lambda) returns
along the trial (Peng and Williams 1996), by Double DQN with a slow copy:

    G_t = r_t + g_t * ((1 - lambda) * Q_slow(h_{t+1}, argmax_a Q(h_{t+1}, a)) + lambda * G_{t+1})

What is maximised is the return of the trial. So the end of an episode does not stop the bootstrap: what follows is the next
episode's first step, which the memory sees. The trial's end does, by termination and by time limit alike, which the clock
tells. g is gamma within an episode. With ``wait`` an episode that terminates at step t is taken to spend the rest of the
horizon, H steps, without reward: g = gamma^(H - t) there. Without, ending early would bring later episodes nearer: where
gamma^H is small, a fallen pole would cost nothing, as the next one stands at once. But with it, and gamma^H small, later
episodes count for nothing in this one: exploring for their sake is not learned then.

Differs from R2D2: no prioritised replay and no rescaled values; gradients reach back through the burn-in, which has no loss.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.adaptation.memory import Prediction
from metarl_cli.algos.memory_algorithm import MemoryAlgorithm, TrialsConfig
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.experience.returns import trial_returns
from metarl_cli.experience.trial_replay import Batch, ReplayConfig, TrialReplay, Trials
from metarl_cli.interfaces import Family, Learner, Params, State
from metarl_cli.networks.q_network import NetworkConfig, QNetwork, load_params
from metarl_cli.spaces import Bins, Spec


class HeadConfig(StrictModel):
    """From the memory and the inputs to values."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each hidden layer")
    activation: Literal["relu", "tanh", "silu"] = Field(description="nonlinearity of the hidden layers")
    layer_norm: bool = Field(description="normalise each hidden layer before its activation")
    dueling: bool = Field(description="separate heads for the value and the advantages")


class ExplorationConfig(StrictModel):
    """How trials are lived through in training."""

    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, first and last")
    iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    spread: float = Field(ge=0, description="a trial's own epsilon is epsilon^(1 + spread u), u uniform in [0, 1] (Ape-X)")
    repeat: int = Field(gt=0, description="steps a random action lasts")


class TargetConfig(StrictModel):
    """How the slow copy follows: w^- <- w^- + polyak * (w - w^-), every so many updates."""

    every: int = Field(gt=0, description="gradient updates between moves of the slow copy")
    polyak: float = Field(gt=0, le=1, description="size of the move; 1 copies the weights (Mnih 2015)")


class DQNConfig(StrictModel):
    """How the Q-network learns."""

    updates: int = Field(gt=0, description="gradient updates per iteration")
    gamma: float = Field(gt=0, le=1, description="discount per step of the trial")
    wait: bool = Field(description="discount as if an episode that terminates took its whole horizon")
    lambda_: Share = Field(alias="lambda", description="share of longer returns; 0 is one-step DQN")
    double: bool = Field(description="choose the bootstrap action by the learning network (Double DQN)")
    loss: Literal["huber", "squared"] = Field(description="loss of the temporal difference")
    reward_scale: float = Field(gt=0, description="rewards are multiplied by this; 1 - gamma keeps values near one")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="the rate's last value, as a share of the first (linear over the run)")
    clip: float = Field(gt=0, description="largest norm of the gradient")
    predict_weight: float = Field(
        ge=0, description="weight of predicting the next observation and reward (auxiliary task); 0: none"
    )
    target: TargetConfig
    use_average: bool = Field(description="test with the slow copy, a running average of the weights")


class Config(TrialsConfig):
    """RL² with DQN."""

    head: HeadConfig
    bins: int = Field(ge=2, description="choices of each action dimension, where actions are vectors; the bounds among them")
    exploration: ExplorationConfig
    replay: ReplayConfig
    dqn: DQNConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.tasks * self.envs > self.replay.capacity:
            raise ValueError("replay.capacity must hold at least the tasks x envs trials of one iteration")
        return self


class Explorer:
    """Epsilon-greedy choices in R trials, where a random one lasts ``repeat`` steps; the share of random steps stays epsilon.

    Temporally extended exploration (Dabney 2021, arXiv:2006.01782) with a fixed duration.

    Args:
        epsilon: of each trial, ``[R]``.
        repeat: steps a random choice lasts.
        rng: of all chance.
    """

    def __init__(self, epsilon: Tensor, repeat: int, rng: torch.Generator):
        self.starts = epsilon / (epsilon + repeat * (1 - epsilon))  # of idle steps
        self.repeat, self.rng = repeat, rng
        self.left = torch.zeros_like(epsilon, dtype=torch.long)  # steps of a random choice still to come
        self.held: Tensor | None = None

    def __call__(self, q: Tensor) -> Tensor:
        """Choices ``[R]`` or ``[R, D]`` from values ``[R, A]`` or ``[R, D, bins]``; never one of value -inf."""
        legal = q > -torch.inf
        chance = torch.rand(q.shape, generator=self.rng, device=q.device)
        anything = torch.where(legal, chance, -1.0).argmax(-1)
        begin = (self.left == 0) & (torch.rand(self.left.shape, generator=self.rng, device=q.device) < self.starts)
        wide = (...,) + (None,) * (anything.dim() - 1)
        held = anything if self.held is None else torch.where(begin[wide], anything, self.held)
        self.held = torch.where(legal.gather(-1, held[..., None])[..., 0], held, anything)  # it may no longer be allowed
        self.left = torch.where(begin, self.repeat, self.left)
        choice = torch.where((self.left > 0)[wide], self.held, q.argmax(-1))
        self.left = (self.left - 1).clamp(min=0)
        return choice


class RL2DQN(MemoryAlgorithm):
    """A Q-network with a memory.

    Args: see :class:`MemoryAlgorithm`; ``learner`` is unused, the memory is the learner.
    """

    stochastic = False
    config: Config

    def __init__(self, config: Config, learner: Learner, family: Family, iterations: int, seed: int, device: torch.device):
        super().__init__(config, family, iterations, seed, device)
        spec = family.spec
        self.bins = None if spec.box is None else Bins(spec.box, config.bins)
        outputs = (spec.num_actions,) if spec.box is None else (len(spec.box.low), config.bins)
        seen = Spec((self.agent.memory.size + self.agent.inputs.size,), spec.actions, spec.horizon)
        self.head = QNetwork(NetworkConfig(convolutions=[], context=0, **config.head.model_dump()), seen, outputs)
        self.prediction = Prediction(self.agent, config.head.hidden[-1])
        init = self.agent.memory.init(self.rng["init"]) | self.head.init(self.rng["init"])
        if config.dqn.predict_weight:
            init |= self.prediction.init(self.rng["init"])
        self.params = {name: value.requires_grad_() for name, value in init.items()}
        self.slow = {name: value.detach().clone() for name, value in init.items()}
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=config.dqn.lr)
        whole = config.replay.model_copy(update={"segment": None})
        kept = whole if config.memory.cell == "transformer" else config.replay
        self.replay = TrialReplay(kept, self.episodes * spec.horizon, device)
        self.updates = 0

    # -- values and choices

    def values(self, params: Params, features: Tensor, inputs: Tensor) -> Tensor:
        """Q ``[..., A]`` or ``[..., D, bins]``; -inf for what cannot be taken."""
        q = self.head(params, torch.cat([features, inputs], -1))
        legal = self.agent.inputs.legal(inputs)
        return q if legal is None else q.masked_fill(~legal, -torch.inf)

    def features(self, params: Params, batch: Batch) -> Tensor:
        """What the memory says along stretches of trials, ``[T, B, H]``; differentiable."""
        memory, rows = self.agent.memory, batch.inputs.shape[1]
        return memory.scan(params, batch.inputs, batch.start or memory.start(rows, batch.inputs.device))

    def q(self, params: Params, batch: Batch) -> Tensor:
        """Q along stretches of trials, ``[T, B, A]`` or ``[T, B, D, bins]``; differentiable."""
        return self.values(params, self.features(params, batch), batch.inputs)

    def value(self, q: Tensor, choice: Tensor) -> Tensor:
        """Q ``[...]`` of choices: of bins the mean over dimensions (Seyde 2022, arXiv:2210.12566)."""
        value = q.gather(-1, choice[..., None])[..., 0]
        return value if self.bins is None else value.mean(-1)

    def acting(self) -> Params:
        return self.slow if self.config.dqn.use_average else self.params

    def act(self, params: Params, features: Tensor, inputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        choice = self.values(params, features, inputs).argmax(-1)
        return choice, self._action(choice)

    def _action(self, choice: Tensor) -> Tensor:
        return choice if self.bins is None else self.bins.values(choice)

    # -- learning

    def train_step(self) -> dict[str, float]:
        """Live through a batch of trials, then learn from replayed ones; the first batch only measures the rewards."""
        config, dqn = self.config, self.config.dqn
        if config.fresh:
            self.task = self.draw_tasks()
        start, end = config.exploration.epsilon
        epsilon = start + (end - start) * min(self.iteration / config.exploration.iterations, 1.0)
        trials = self._collect(epsilon)
        self.env_steps += round(float(trials.weight.sum()))
        metrics = trials.summary() | {"train/epsilon": epsilon}
        if self.iteration == 0:
            self.agent.measure(trials)
        else:
            self.replay.add(trials, self.discounts(trials))
            progress = min(self.iteration / self.iterations, 1.0)
            self.optimizer.param_groups[0]["lr"] = dqn.lr * (1 + (dqn.final_lr - 1) * progress)
            found = [self._update(self.replay.sample(self.rng["minibatch"])) for _ in range(dqn.updates)]
            loss, norm, q = torch.stack([torch.stack(update) for update in found]).mean(0).tolist()
            metrics |= {"loss/td": loss, "grad/norm": norm, "train/q": q, "train/lr": self.optimizer.param_groups[0]["lr"]}
        self.iteration += 1
        return metrics

    def _collect(self, epsilon: float) -> Trials:
        """One trial in each of the tasks' environments."""
        config, rng = self.config, self.rng["exploration"]
        rows = config.tasks * config.envs
        power = 1 + config.exploration.spread * torch.rand(rows, generator=rng, device=rng.device)
        explorer = Explorer(epsilon**power, config.exploration.repeat, rng)
        params = {name: value.detach() for name, value in self.params.items()}

        def act(features: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
            choice = explorer(self.values(params, features, inputs))
            return choice, self._action(choice)

        collect, episodes = self.agent.collect, self.rng["episodes"]
        return collect(params, act, self.family, self.task, config.envs, self.episodes, episodes, self.replay.stride)

    def discounts(self, trials: Trials) -> Tensor:
        """How much what follows each step counts, ``[T, R]``: see the module's docstring; 0 from a trial's last step on."""
        dqn, horizon = self.config.dqn, self.family.spec.horizon
        discount = torch.full_like(trials.reward, dqn.gamma)
        if dqn.wait:
            left = horizon - trials.clock[..., 0] * horizon
            discount = torch.where(trials.terminated, dqn.gamma**left, discount)
        goes_on = torch.cat([trials.weight[1:], torch.zeros_like(trials.weight[:1])])
        return discount * goes_on

    def _update(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient step; the loss, the gradient's norm and the mean Q."""
        dqn, weights = self.config.dqn, list(self.params.values())
        loss, q = self.loss(self.params, self.slow, batch)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(weights, dqn.clip)
        self.optimizer.step()
        self.updates += 1
        if self.updates % dqn.target.every == 0:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.slow.values()), weights, dqn.target.polyak)
        return loss.detach(), norm, q

    def loss(self, params: Params, slow: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss of what is learned, and the mean Q there; both scalar."""
        dqn, weight = self.config.dqn, batch.weight / batch.weight.sum()
        features = self.features(params, batch)
        q = self.values(params, features, batch.inputs)
        with torch.no_grad():
            q_slow = self.q(slow, batch)
            best = (q if dqn.double else q_slow).argmax(-1)
            reward = batch.reward * dqn.reward_scale
            target = trial_returns(reward, batch.discount, self.value(q_slow, best), dqn.lambda_)
        value = self.value(q, batch.choice)
        error = F.huber_loss(value, target, reduction="none") if dqn.loss == "huber" else (value - target).square()
        loss = (error * weight).sum()
        if dqn.predict_weight:
            loss = loss + dqn.predict_weight * self.prediction.loss(params, features, batch.inputs, batch.weight)
        return loss, (value.detach() * weight).sum()

    # -- saving

    def weights(self) -> State:
        return {
            "params": {name: value.detach() for name, value in self.params.items()},
            "slow": self.slow,
            "measured": self.agent.measured,
        }

    def load_weights(self, state: State) -> None:
        with torch.no_grad():
            load_params(self.params, state["params"])
            load_params(self.slow, state["slow"])
            load_params(self.agent.measured, state["measured"])

    def state_dict(self) -> State:
        return {
            "weights": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "rng": self.rng.state_dict(),
            "iteration": self.iteration,
            "updates": self.updates,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.rng.load_state_dict(state["rng"])
        self.iteration, self.updates = state["iteration"], state["updates"]
        self.env_steps = state["env_steps"]


Algo = RL2DQN

"""RL² by Q-learning: a recurrent Q-network over whole trials, trained on replayed trials.

    x_t = [s_t, a_{t-1}, r_{t-1}, d_{t-1}]    h_t = memory(h_{t-1}, x_t)    a_t = argmax_a Q(h_t, x_t, a)   h lasts all trial

The memory is the learning algorithm (Duan 2016, arXiv:1611.02779) and recurrent DQN (Hausknecht 2015, arXiv:1507.06527)
trains it: on segments of trials that start from a stored memory and burn in (R2D2: Kapturowski 2019), or on whole trials
(Ni 2022, arXiv:2110.05038, whose shortcut from the inputs to the head is used too). Targets are Q(lambda) returns along the
trial (Peng and Williams 1996), by Double DQN with a slow copy:

    G_t = r_t + g_t * ((1 - lambda) * Q_slow(h_{t+1}, argmax_a Q(h_{t+1}, a)) + lambda * G_{t+1})

The objective is the return of the trial. So targets bootstrap across the end of an episode, from the first step of the next
episode, which is an input of the memory. They do not bootstrap across the end of the trial, whether by termination or by the
time limit, which the clock indicates. g is gamma within an episode. With ``wait``, an episode that terminates at step t counts
as if it spent the rest of its horizon of H steps without reward: g = gamma^(H - t) there. Without ``wait``, termination brings
later episodes closer: where gamma^H is small, a fallen pole would cost nothing, because the next pole stands upright. With
``wait`` and a small gamma^H, the values of an episode ignore later episodes, and exploration for their benefit is not learned.

Differs from R2D2: no prioritised replay and no rescaled values; gradients reach back through the burn-in, which has no loss.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from metarl_cli.adaptation.memory import Prediction, collect_trials
from metarl_cli.algos.memory_algorithm import MemoryAlgorithm, TrialsConfig
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import BYTES, COPIES, META, factor, size_of, without_content
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.returns import trial_returns
from metarl_cli.experience.schedules import linear
from metarl_cli.experience.trial_replay import Batch, ReplayConfig, TrialReplay
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Context, Footprint, Holding, Params, State
from metarl_cli.networks.distributions import Greedy
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.q_network import NetworkConfig, QNetwork
from metarl_cli.networks.stacked import detached, load_params
from metarl_cli.networks.target import TargetConfig, follow
from metarl_cli.progress import timed
from metarl_cli.spaces import Distribution


class HeadConfig(StrictModel):
    """The head, from the memory's features and inputs to Q-values."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each hidden layer")
    activation: Literal["relu", "tanh", "silu"] = Field(description="nonlinearity of the hidden layers")
    layer_norm: bool = Field(description="normalise each hidden layer before its activation")
    dueling: bool = Field(description="separate heads for the value and the advantages")


class ExplorationConfig(StrictModel):
    """Exploration in training trials."""

    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, initial and final")
    iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    spread: float = Field(ge=0, description="epsilon of each trial is epsilon^(1 + spread u), u uniform in [0, 1] (Ape-X)")
    repeat: int = Field(gt=0, description="steps for which a random action is repeated")


class DQNConfig(StrictModel):
    """DQN on replayed trials."""

    updates: int = Field(gt=0, description="gradient updates per iteration")
    gamma: float = Field(gt=0, le=1, description="discount per step of the trial")
    wait: bool = Field(description="discount as if an episode that terminates took its whole horizon")
    lambda_: Share = Field(alias="lambda", description="lambda of Q(lambda) returns; 0 is one-step DQN")
    double: bool = Field(description="choose the bootstrap action by the online network (Double DQN)")
    loss: Literal["huber", "squared"] = Field(description="loss function of the temporal difference")
    reward_scale: float = Field(gt=0, description="factor on rewards; 1 - gamma keeps values near one")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (linear over the run)")
    clip: float = Field(gt=0, description="largest norm of the gradient")
    predict_weight: float = Field(
        ge=0, description="weight of the prediction of the next observation and reward (auxiliary task); 0: none"
    )
    target: TargetConfig
    use_average: bool = Field(description="test with the slow copy, a running average of the weights")


class Config(TrialsConfig):
    """RL² with DQN."""

    head: HeadConfig
    bins: int = Field(ge=2, description="number of values per dimension of vector actions, bounds included")
    exploration: ExplorationConfig
    replay: ReplayConfig
    dqn: DQNConfig

    @model_validator(mode="after")
    def _check_capacity(self) -> Config:
        if self.tasks * self.envs > self.replay.capacity:
            raise ValueError("replay.capacity must hold at least the tasks x envs trials of one iteration")
        return self


class RL2DQN(MemoryAlgorithm):
    """A Q-network with a memory; see :class:`MemoryAlgorithm` for the arguments."""

    stochastic = False
    saved = ("optimizer", "replay", "rng")
    counters = ("iteration", "updates", "env_steps")
    config: Config

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        spec, actions = self.family.spec, self.family.spec.actions
        self.actions = actions.choices(config.bins)
        size = self.agent.memory.size + self.agent.inputs.size
        self.q_head = QNetwork(
            NetworkConfig(convolutions=[], context=0, **config.head.model_dump()), (size,), self.actions.value_shape
        )
        self.prediction = Prediction(self.agent, config.head.hidden[-1])
        init = self.agent.memory.init(self.rng["init"]) | self.q_head.init(self.rng["init"])
        if config.dqn.predict_weight:
            init |= self.prediction.init(self.rng["init"])
        self.params = {name: value.requires_grad_() for name, value in init.items()}
        self.slow = {name: value.detach().clone() for name, value in init.items()}
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=config.dqn.lr, fused=True)
        whole = config.replay.model_copy(update={"segment": None})  # a segment needs a recurrent memory to start from
        replay = config.replay if self.agent.context is None else whole
        self.replay = TrialReplay(replay, config.episodes * spec.horizon, self.device)
        self.processes, self.shares = context.processes, config.replay.batch
        self.updates = 0

    # -- values

    def values(self, params: Params, features: Tensor, inputs: Tensor) -> Tensor:
        """Return Q ``[..., A]`` or ``[..., D, bins]``; -inf for illegal actions."""
        q = self.q_head(params, torch.cat([features, inputs], -1))
        legal = self.agent.inputs.legal(inputs)
        return q if legal is None else q.masked_fill(~legal, -torch.inf)

    @override
    def head(self, params: Params, features: Tensor, inputs: Tensor) -> Distribution:
        return Greedy(self.values(params, features, inputs), self.actions)

    @timed("memory")
    def features(self, params: Params, batch: Batch) -> Tensor:
        """Return the memory's features along segments of trials, ``[T, B, H]``; differentiable."""
        memory, rows = self.agent.memory, batch.inputs.shape[1]
        return memory.scan(params, batch.inputs, batch.start or memory.start(rows, batch.inputs.device))

    def q(self, params: Params, batch: Batch) -> Tensor:
        """Return Q along segments of trials, ``[T, B, A]`` or ``[T, B, D, bins]``; differentiable."""
        return self.values(params, self.features(params, batch), batch.inputs)

    @override
    def tested(self) -> Params:
        return self.slow if self.config.dqn.use_average else self.params

    # -- learning

    @override
    @classmethod
    def cost_of_building(cls, config: TrialsConfig, context: Context) -> Footprint:
        assert isinstance(config, Config)
        held, passing = super().cost_of_building(config, context)
        return Footprint([*held, Holding("algo.replay.capacity", 8 * config.replay.capacity)], passing)

    @override
    def cost_of_training(self) -> Footprint:
        config, replay, inputs = self.config, self.replay.config, self.agent.inputs.size
        steps = config.episodes * self.family.spec.horizon
        segments = -(-steps // self.replay.stride)
        trials = self.cost_of_trials(segments)
        per_step = BYTES * (inputs + 3 + self.family.spec.actions.size)
        state = size_of(self.agent.memory.start(1, META)) if replay.segment else 0
        kept = replay.capacity * (steps * per_step + segments * state)
        capacity = factor(algo__replay__capacity=replay.capacity, algo__episodes=config.episodes)
        length, own = min(replay.burn_in + self.replay.segment + 1, steps), -(-replay.batch // self.processes.size)

        def loss(n: int) -> Tensor:
            of = self.blank_trials(n, own, n)
            batch = Batch(of.inputs, of.action, of.reward, of.reward, of.weight, {k: v[0] for k, v in of.starts.items()})
            return self.loss(self.params, without_content(self.slow), batch, of.weight)[0]

        return Footprint(
            [
                Holding(capacity, kept),
                trials,
                Holding("algo.memory.size", 3 * size_of(self.params)),
            ],
            [
                Holding("algo.replay.batch", self.cost_of_loss(length, loss) + replay.batch * length * per_step),
                Holding(capacity, (COPIES - 1) * kept),
                trials,
            ],
        )

    def train_step(self) -> dict[str, float]:
        """Collect a batch of trials and update on replayed trials; the first batch only sets the statistics of rewards."""
        config, dqn = self.config, self.config.dqn
        if config.fresh:
            self.task = self.draw_tasks()
        epsilon = linear(config.exploration.epsilon, self.iteration / config.exploration.iterations)
        trials = self._collect(epsilon)
        self.env_steps += round(float(trials.weight.sum()))
        metrics = trials.summary() | {"train/epsilon": epsilon}
        if self.iteration == 0:
            self.agent.measure(trials)
        else:
            self.replay.add(trials, self.discounts(trials, self.family.horizons(self.task).repeat_interleave(config.envs)))
            self.optimizer.param_groups[0]["lr"] = dqn.lr * linear((1.0, dqn.final_lr), self.progress)
            updates = [self._update(self.replay.sample(self.rng["minibatch"])) for _ in range(dqn.updates)]
            loss, norm, q = torch.stack([torch.stack(update) for update in updates]).mean(0).tolist()
            metrics |= {"loss/td": loss, "grad/norm": norm, "train/q": q, "train/lr": self.optimizer.param_groups[0]["lr"]}
        self.iteration += 1
        return metrics

    def _collect(self, epsilon: float) -> Trials:
        """Collect one trial in each environment, with an epsilon of its own."""
        config, rng, rows = self.config, self.rng["exploration"], (self.config.tasks, self.config.envs)
        power = 1 + config.exploration.spread * torch.rand(rows, generator=rng, device=rng.device)
        greedy = self.policy(detached(self.params), self.family.horizons(self.task), config.episodes)
        policy = EpsilonGreedy(greedy, self.actions, epsilon**power, config.exploration.repeat)
        rngs = self.rng["episodes"], rng
        return collect_trials(self.family, self.task, policy, config.envs, config.episodes, *rngs, self.replay.stride)

    def discounts(self, trials: Trials, horizon: Tensor) -> Tensor:
        """Return the discount g of each step, ``[T, R]``: see the module docstring; 0 from the last step of a trial on.

        Args:
            trials: R trials.
            horizon: ``[R]``, of an episode of each.
        """
        dqn = self.config.dqn
        discount = torch.full_like(trials.reward, dqn.gamma)
        if dqn.wait:
            left = horizon - trials.clock[..., 0] * horizon
            discount = torch.where(trials.terminated, dqn.gamma**left, discount)
        continues = torch.cat([trials.weight[1:], torch.zeros_like(trials.weight[:1])])
        return discount * continues

    def _update(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Take one gradient step, shared by all processes; returns the loss, the norm of the gradient and the mean Q."""
        dqn, weights = self.config.dqn, list(self.params.values())
        own = batch.rows(self.processes.shard(self.config.replay.batch))
        loss, q = self.loss(self.params, self.slow, own, batch.weight)
        loss, q, *gradients = self.processes.sum([loss, q, *backward(loss, weights)])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(weights, dqn.clip)
        self.optimizer.step()
        self.updates += 1
        if self.updates % dqn.target.every == 0:
            follow(self.slow, self.params, dqn.target.polyak)
        return loss.detach(), norm, q

    @timed("loss")
    def loss(self, params: Params, slow: Params, batch: Batch, whole: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the mean loss over the weighted steps, and their mean Q; both scalar.

        Args:
            params: the weights.
            slow: the weights that targets come from.
            batch: segments of trials.
            whole: weights ``[T, B]`` of the batch of which these segments are a share, so that the losses of all shares add up
                to the mean over it; None: they are all of it.
        """
        whole = batch.weight if whole is None else whole
        dqn, weight = self.config.dqn, batch.weight / whole.sum()
        features = self.features(params, batch)
        q = self.values(params, features, batch.inputs)
        with torch.no_grad():
            q_slow = self.q(slow, batch)
            best = (q if dqn.double else q_slow).argmax(-1)
            reward = batch.reward * dqn.reward_scale
            target = trial_returns(reward, batch.discount, self.actions.value(q_slow, best), dqn.lambda_)
        value = self.actions.value(q, self.actions.index(batch.action))
        error = F.huber_loss(value, target, reduction="none") if dqn.loss == "huber" else (value - target).square()
        loss = (error * weight).sum()
        if dqn.predict_weight:
            loss = loss + dqn.predict_weight * self.prediction.loss(params, features, batch.inputs, batch.weight, whole)
        return loss, (value.detach() * weight).sum()

    # -- saving

    @override
    def drop_replay(self) -> None:
        self.replay.clear()

    @override
    def weights(self) -> State:
        return {"params": detached(self.params), "slow": self.slow, "measured": self.agent.measured}

    @override
    def load_weights(self, state: State) -> None:
        load_params(self.params, state["params"])
        load_params(self.slow, state["slow"])
        load_params(self.agent.measured, state["measured"])


Algo = RL2DQN

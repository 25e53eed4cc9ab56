"""RL²: a recurrent policy whose memory is the learning algorithm (Duan 2016, arXiv:1611.02779; Wang 2016, arXiv:1611.05763).

    x_t = [s_t, a_{t-1}, r_{t-1}, d_{t-1}]    h_t = memory(h_{t-1}, x_t)    a_t ~ pi(h_t, x_t)    h lasts over the whole trial

The objective is the return of the whole trial, so early exploration pays off in later episodes. PPO (Schulman 2017,
arXiv:1707.06347) learns the weights, with generalised advantages over the trial, in minibatches of whole trials. The training
tasks are drawn for every iteration (``fresh``), or once.

Differs from the paper: PPO instead of TRPO; a value function that shares the memory and has the clock as an input; a policy
head with the inputs of the memory beside its features; lambda of 0.9 and more (credit with the paper's 0.3 vanishes within a
trial of 100 steps); rewards centred and scaled by statistics of the first batch, which is not used for learning; prediction
of the next observation and reward as an auxiliary task.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from metarl_cli.adaptation.memory import Prediction, collect_trials
from metarl_cli.algos.memory_algorithm import MemoryAlgorithm, TrialsConfig
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import peak, size_of
from metarl_cli.experience.returns import deviation, generalized_advantages, variance
from metarl_cli.experience.schedules import linear
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Context, Footprint, Holding, Params, State
from metarl_cli.networks.distributions import PolicyHead
from metarl_cli.networks.layers import apply_head, head
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, load_params
from metarl_cli.progress import timed
from metarl_cli.spaces import Distribution

DECAY = 0.9  # of the running mean and standard deviation of returns, per iteration


class PPOConfig(StrictModel):
    """PPO on a batch of trials."""

    epochs: int = Field(gt=0, description="passes over each batch")
    minibatches: int = Field(gt=0, description="minibatches of whole trials per pass, with one update each")
    ratio_clip: float = Field(gt=0, description="epsilon of PPO: the probability ratio is clipped to 1 ± epsilon")
    gamma: float = Field(gt=0, le=1, description="discount per step of the trial")
    lambda_: Share = Field(alias="lambda", description="lambda of the generalised advantages")
    entropy: list[float] = Field(min_length=2, max_length=2, description="entropy bonus weight, initial and final (linear)")
    value_weight: float = Field(ge=0, description="weight of the value loss")
    predict_weight: float = Field(
        ge=0, description="weight of the prediction of the next observation and reward (auxiliary task); 0: none"
    )
    repeat: float = Field(
        ge=0, description="first logit of the previous action, on a linear path from the inputs to the policy; 0: no such path"
    )
    hidden: int = Field(gt=0, description="hidden units of the heads of the policy, the value function and the prediction")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (linear over the run)")
    clip: float = Field(gt=0, description="largest norm of the gradient")
    segment: int | None = Field(gt=0, description="steps of backpropagation through time (gru, lstm); none: the whole trial")


class Config(TrialsConfig):
    """RL² with PPO."""

    ppo: PPOConfig

    @model_validator(mode="after")
    def _check_minibatches(self) -> Config:
        if self.tasks * self.envs < self.ppo.minibatches:
            raise ValueError(
                f"ppo.minibatches ({self.ppo.minibatches}) must not be above tasks x envs ({self.tasks * self.envs})"
            )
        return self


class Signal(NamedTuple):
    """The learning signals of PPO at each step of trials, ``[T, R]`` each."""

    log_prob: Tensor  # of the action, under the policy that collected it
    advantage: Tensor  # normalised to mean 0 and standard deviation 1
    target: Tensor  # normalised return, for the value function

    def rows(self, rows: Tensor, steps: int) -> Signal:
        """Select the signals of the first steps of trials ``rows [B]``."""
        return Signal(*(x[:steps].index_select(1, rows) for x in self))


class RL2(MemoryAlgorithm):
    """A policy and a value function on one memory; see :class:`MemoryAlgorithm` for the arguments."""

    stochastic = True
    saved = ("optimizer", "rng")
    config: Config

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        self.policy_head = PolicyHead(self.family.spec.actions)
        self.prediction = Prediction(self.agent, config.ppo.hidden)
        self.params = {name: value.requires_grad_() for name, value in self._init(self.rng["init"]).items()}
        # statistics of returns, because the value function learns normalised ones
        self.returns: Params = {"mean": torch.zeros((), device=self.device), "std": torch.ones((), device=self.device)}
        self.processes, self.shares = context.processes, config.tasks * config.envs // config.ppo.minibatches
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=config.ppo.lr, eps=1e-5, fused=True)

    def _init(self, rng: torch.Generator) -> Params:
        """Draw fresh weights; those of the policy head are small, so that the initial policy is almost uniform."""
        size, inputs, hidden = self.agent.memory.size, self.agent.inputs.size, self.config.ppo.hidden
        params = self.agent.memory.init(rng) | self.policy_head.init(rng.device)
        params |= head("policy", self.policy_head.outputs, hidden, size + inputs, 0.01, rng)
        params |= head("value", 1, hidden, size + 2, 0.1, rng)
        if self.config.ppo.repeat:
            params["repeat.weight"] = self.config.ppo.repeat * self.agent.inputs.previous_action(rng.device)
        return params | (self.prediction.init(rng) if self.config.ppo.predict_weight else {})

    # -- the policy and the value function

    @override
    def head(self, params: Params, features: Tensor, inputs: Tensor) -> Distribution:
        outputs = apply_head(params, "policy", features, inputs)
        if self.config.ppo.repeat:
            outputs = outputs + F.linear(inputs, params["repeat.weight"])
        return self.policy_head(params, outputs, self.agent.inputs.legal(inputs))

    def value(self, params: Params, features: Tensor, clock: Tensor) -> Tensor:
        """Return the normalised value ``[...]``: the expected return of the rest of the trial."""
        return apply_head(params, "value", features, clock)[..., 0]

    @override
    def tested(self) -> Params:
        return self.params

    # -- learning

    @override
    def cost_of_training(self) -> Footprint:
        config, ppo = self.config, self.config.ppo
        rows, steps = config.tasks * config.envs, config.episodes * self.family.spec.horizon
        trials = self.cost_of_trials(-(-steps // self._segment))
        part = -(-rows // ppo.minibatches // self.processes.size)

        def loss(n: int) -> Tensor:
            of = self.blank_trials(n, part, n)
            return self.loss(self.params, of, Signal(of.reward, of.reward, of.reward), 0.0, of.weight)[0]

        @torch.no_grad()
        def signal() -> Tensor:
            of = self.blank_trials(steps, rows, steps)
            features = of.inputs.new_zeros(steps, rows, self.agent.memory.size)
            return self.head(self.params, features, of.inputs).log_prob(of.action)

        with self.blanked():
            signals = peak(signal)
        return Footprint(
            [trials, Holding("algo.memory.size", 3 * size_of(self.params))],
            [
                Holding("algo.ppo.minibatches", self.cost_of_loss(steps, loss) + trials.bytes / ppo.minibatches),
                Holding(trials.key, max(trials.bytes, signals)),
            ],
        )

    def train_step(self) -> dict[str, float]:
        """Collect a batch of trials and improve the policy on it; the first batch only sets the statistics of rewards."""
        config, ppo = self.config, self.config.ppo
        if config.fresh:
            self.task = self.draw_tasks()
        policy = self.policy(detached(self.params), self.family.horizons(self.task), config.episodes)
        rngs = self.rng["episodes"], self.rng["exploration"]
        trials = collect_trials(self.family, self.task, policy, config.envs, config.episodes, *rngs, self._segment)
        self.env_steps += round(float(trials.weight.sum()))
        metrics = trials.summary()
        if self.iteration == 0:
            self.agent.measure(trials)
        else:
            self.optimizer.param_groups[0]["lr"] = ppo.lr * linear((1.0, ppo.final_lr), self.progress)
            entropy_weight = linear(ppo.entropy, self.progress)
            metrics |= self._learn(trials, entropy_weight)
            metrics |= {"train/lr": self.optimizer.param_groups[0]["lr"], "train/entropy_weight": entropy_weight}
        self.iteration += 1
        return metrics

    @property
    def _segment(self) -> int:
        """Return the number of steps of backpropagation through time: the whole trial, unless truncated."""
        whole = self.config.episodes * self.family.spec.horizon
        return self.config.ppo.segment or whole if self.agent.context is None else whole

    @timed("advantages")
    @torch.no_grad()
    def signal(self, trials: Trials) -> tuple[Signal, float]:
        """Derive the learning signals of a batch of trials; returns the explained variance of returns too."""
        ppo, inside = self.config.ppo, trials.weight > 0
        policy = self.head(self.params, trials.features, trials.inputs)
        value = self.value(self.params, trials.features, trials.clock) * self.returns["std"] + self.returns["mean"]
        advantage = generalized_advantages(trials.reward, value, trials.weight, ppo.gamma, ppo.lambda_)
        target = advantage + value
        self._measure_returns(target[inside])
        explained = 1 - variance(advantage[inside]) / variance(target[inside]).clamp(min=1e-12)
        signal = Signal(
            log_prob=policy.log_prob(trials.action),
            advantage=(advantage - advantage[inside].mean()) / deviation(advantage[inside]).clamp(min=1e-8),
            target=(target - self.returns["mean"]) / self.returns["std"],
        )
        return signal, float(explained)

    def _learn(self, trials: Trials, entropy_weight: float) -> dict[str, float]:
        """Take the passes of PPO over a batch of trials; returns the mean metrics."""
        ppo, weights, rng = self.config.ppo, list(self.params.values()), self.rng["minibatch"]
        signal, explained = self.signal(trials)
        trials = trials._replace(features=trials.features[..., :0])  # learning computes its own: do not copy these
        sums: dict[str, Tensor] = {}
        for _ in range(ppo.epochs):
            for rows in torch.randperm(trials.reward.shape[1], generator=rng, device=self.device).tensor_split(ppo.minibatches):
                own, whole = rows[self.processes.shard(len(rows))], trials.weight.index_select(1, rows)
                mine = trials.rows(own)
                loss, metrics = self.loss(self.params, mine, signal.rows(own, len(mine.reward)), entropy_weight, whole)
                shared = self.processes.sum([*metrics.values(), *backward(loss, weights)])
                metrics = dict(zip(metrics, shared, strict=False))
                for weight, gradient in zip(weights, shared[len(metrics) :], strict=True):
                    weight.grad = gradient
                metrics["grad/norm"] = torch.nn.utils.clip_grad_norm_(weights, ppo.clip)
                self.optimizer.step()
                sums = {name: sums.get(name, 0) + value.detach() for name, value in metrics.items()}
        updates = ppo.epochs * ppo.minibatches
        return {name: float(total) / updates for name, total in sums.items()} | {"loss/explained_variance": explained}

    @timed("loss")
    def loss(
        self, params: Params, trials: Trials, signal: Signal, entropy_weight: float, whole: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute PPO's loss and its metrics: clipped objective, value loss and entropy bonus, as means over steps.

        Args:
            params: the weights.
            trials: a minibatch.
            signal: of its trials.
            entropy_weight: of the entropy bonus.
            whole: weights ``[T', B]`` of the minibatch of which these trials are a share, T' at least T, so that the losses of
                all shares add up to the mean over it; None: they are all of it.
        """
        whole = trials.weight if whole is None else whole
        ppo, weight = self.config.ppo, trials.weight / whole.sum()
        features = self.agent.recall(params, trials, self._segment)
        policy = self.head(params, features, trials.inputs)
        log_ratio = policy.log_prob(trials.action) - signal.log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - ppo.ratio_clip, 1 + ppo.ratio_clip)
        policy_loss = -(torch.minimum(ratio * signal.advantage, clipped * signal.advantage) * weight).sum()
        value_loss = ((self.value(params, features, trials.clock) - signal.target).square() * weight).sum() / 2
        entropy = (policy.entropy() * weight).sum()
        loss = policy_loss + ppo.value_weight * value_loss - entropy_weight * entropy
        metrics = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "train/entropy": entropy,
            "train/kl": ((ratio - 1 - log_ratio) * weight).sum(),
            "train/clipped": ((ratio != clipped) * weight).sum(),
        }
        if ppo.predict_weight:
            metrics["loss/prediction"] = self.prediction.loss(params, features, trials.inputs, trials.weight, whole)
            loss = loss + ppo.predict_weight * metrics["loss/prediction"]
        return loss, metrics

    def _measure_returns(self, target: Tensor) -> None:
        """Update the running mean and standard deviation of returns; the first batch of learning sets them."""
        batch = {"mean": target.mean(), "std": deviation(target).clamp(min=1e-6)}
        keep = DECAY if self.iteration > 1 else 0.0
        self.returns = {name: keep * self.returns[name] + (1 - keep) * value for name, value in batch.items()}

    # -- saving

    @override
    def weights(self) -> State:
        return {"params": detached(self.params), "measured": self.agent.measured, "returns": self.returns}

    @override
    def load_weights(self, state: State) -> None:
        load_params(self.params, state["params"])
        load_params(self.agent.measured, state["measured"])
        load_params(self.returns, state["returns"])


Algo = RL2

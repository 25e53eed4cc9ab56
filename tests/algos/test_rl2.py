"""RL²: probes that only memory solves, what PPO's first update is by an independent computation, and every family."""

from __future__ import annotations

from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ENVS, KINDS, compose_train, flat, load, short, slow_if, tiny
from probes import Buttons, Cue, Dial
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional as F

from metarl_cli.adaptation.memory import Agent
from metarl_cli.algos import rl2
from metarl_cli.algos.rl2 import RL2
from metarl_cli.config.registry import ConfigError
from metarl_cli.errors import UserError
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Budget, Context, Family, Params
from metarl_cli.seeding import numpy_rng, torch_rng

CPU = torch.device("cpu")
SMALL = (
    "algo.memory.size=16",
    "algo.memory.timescale=10",
    "algo.memory.heads=2",
    "algo.ppo.hidden=32",
    "algo.tasks=32",
    "algo.envs=2",
    "algo.ppo.minibatches=1",
    "algo.ppo.lr=0.01",
    "algo.ppo.ratio_clip=0.2",
)


@cache
def config_of(*overrides: str):
    return load("algo", compose_train("algo=rl2", *overrides).algo)[1]


def built(family: Family, *overrides: str, iterations: int = 30, seed: int = 0) -> RL2:
    return RL2(config_of(*overrides), Context(family, None, iterations, seed, CPU))


def trials_on(family: Family, task: Params, algorithm: RL2, num_envs: int, seed: int = 0, greedy: bool = True):
    """Returns and lengths of the episodes of trials."""
    adapted = next(algorithm.adapt(task, Budget(), torch_rng(seed, "support")))
    rngs = torch_rng(seed, "env"), torch_rng(seed, "trial")
    return run_episodes(family, task, adapted.policy, num_envs, *rngs, adapted.episodes, greedy)


# -- hidden state


def both_sides(family: Family) -> Params:
    """The two sides; where lengths differ, with every length."""
    if isinstance(family, Cue):
        return {"side": torch.tensor([-1.0, 1.0]).repeat(4), "length": torch.arange(1.0, 5.0).repeat_interleave(2)}
    return {"side": torch.tensor([-1.0, 1.0])}


def solved(family: Family, episodes: int, iterations: int, seed: int = 0, cell: str = "gru") -> list[float]:
    """The mean return of each episode of greedy trials after learning."""
    overrides = [*SMALL, f"algo.episodes={episodes}", f"algo.memory.cell={cell}"]
    algorithm = built(family, *overrides, iterations=iterations, seed=seed)
    for _ in range(iterations):
        algorithm.train_step()
    found, _ = trials_on(family, both_sides(family), algorithm, 1, seed)
    return found.mean((1, 2)).tolist()


def buttons(seed: int = 0, cell: str = "gru") -> list[float]:
    return solved(Buttons(horizon=1), 4, 10, seed, cell)


def cue(seed: int = 0, cell: str = "gru") -> list[float]:
    return solved(Cue(), Cue.episodes, 15, seed, cell)


SEEDS = [("gru", 0), ("gru", 1), ("gru", 2), ("lstm", 0), ("transformer", 0)]


@pytest.mark.parametrize(("cell", "seed"), SEEDS)
def test_the_first_press_tells_the_button(cell, seed):
    """An episode is one press, so that what it paid is of use across its end alone: 0 at first, as the sides cancel, then 1."""
    assert buttons(seed, cell) == [0, 1, 1, 1]


@pytest.mark.parametrize(("cell", "seed"), SEEDS)
def test_a_cue_is_remembered_over_episodes_of_any_length(cell, seed):
    assert cue(seed, cell) == [0, 0, 1]


def test_a_dial_is_set_by_what_the_first_try_cost():
    """The penalty is 1 on average without memory; with it only at first, then close to nothing."""
    first, *rest = solved(Dial(), 4, 60)
    assert first == pytest.approx(-1, abs=0.1)
    assert min(rest) > -0.25


def test_memory_that_ends_with_the_episode_solves_neither(monkeypatch):
    observe = Agent.observe

    def forgets(self, state, obs, action, step):
        after = observe(self, state, obs, action, step)
        return reset(after, self.begin(len(step.reward)), step.terminated | step.truncated)

    monkeypatch.setattr(Agent, "observe", forgets)
    assert buttons() == [0, 0, 0, 0]
    assert cue() == [0, 0, 0]


def reset(state, fresh, ended: Tensor):
    """``fresh`` where the episode has ended."""
    if isinstance(fresh, dict):
        return {**state, **{name: reset(state[name], fresh[name], ended) for name in fresh}}
    return torch.where(ended.view(-1, *[1] * (fresh.dim() - 1)), fresh, state)


def test_a_hidden_state_that_ends_with_the_episode_loses_the_cue(monkeypatch):
    """Though the next episode still sees what came just before."""
    observe = Agent.observe

    def forgets(self, state, obs, action, step):
        after = observe(self, state, obs, action, step)
        hidden = reset(after["hidden"], self.begin(len(step.reward))["hidden"], step.terminated | step.truncated)
        return {**after, "hidden": hidden}

    monkeypatch.setattr(Agent, "observe", forgets)
    assert cue() == [0, 0, 0]


def test_without_rewards_the_button_stays_unknown(monkeypatch):
    see = Agent.see

    def blind(self, state, obs, episodes):
        return see(self, {**state, "before": {**state["before"], "reward": torch.zeros(len(obs))}}, obs, episodes)

    monkeypatch.setattr(Agent, "see", blind)
    assert buttons() == [0, 0, 0, 0]
    assert cue() == [0, 0, 1], "which is shown, not paid"


def test_trials_that_change_task_within_teach_nothing(monkeypatch):
    """What is learned above is about the task: it is of no use where every episode has another."""
    dynamics = Buttons.dynamics

    def changing(self, state, action, task, rng):
        side = torch.rand(action.shape, generator=rng) - 0.5
        return dynamics(self, state, action, {"side": side}, rng)

    monkeypatch.setattr(Buttons, "dynamics", changing)
    family = Buttons(horizon=1)
    algorithm = built(family, *SMALL, "algo.episodes=4")
    for _ in range(10):
        algorithm.train_step()
    task = {"side": torch.ones(2000)}
    found, _ = trials_on(family, task, algorithm, 1)
    assert found.mean((1, 2)).abs().max() < 4 / 2000**0.5


# -- PPO


def spied(algorithm: RL2) -> tuple[list[Trials], list[Params]]:
    """What one iteration collects, and the gradients of its updates."""
    collect, loss = rl2.collect_trials, algorithm.loss
    kept, gradients = [], []

    def collecting(*arguments) -> Trials:
        kept.append(collect(*arguments))
        return kept[-1]

    def losing(*arguments):
        found = loss(*arguments)
        weights = algorithm.params
        gradients.append(
            dict(zip(weights, torch.autograd.grad(found[0], list(weights.values()), retain_graph=True), strict=True))
        )
        return found

    algorithm.loss = losing
    with mock.patch.object(rl2, "collect_trials", collecting):
        algorithm.train_step()
    algorithm.loss = loss
    return kept, gradients


def naive_advantages(reward: list[float], value: list[float], gamma: float, lambda_: float) -> list[float]:
    """Equation 16 of arXiv:1506.02438 as it stands: every delta to the end, discounted."""
    steps = len(reward)
    delta = [reward[t] + (gamma * value[t + 1] if t + 1 < steps else 0) - value[t] for t in range(steps)]
    return [sum((gamma * lambda_) ** (j - t) * delta[j] for j in range(t, steps)) for t in range(steps)]


@pytest.mark.parametrize("repeat", [0, 2])
def test_the_first_update_is_the_vanilla_policy_gradient(float64, repeat):
    """Trial by trial, step by step, without padding: mean of -A log pi, half the value's squared error, less the entropy.

    Advantages are normalised over all steps of all trials; so are the values' targets, as this is the first batch.
    """
    overrides = ["algo.tasks=8", "algo.memory.size=8", "algo.episodes=3", "algo.ppo.epochs=1", "algo.ppo.entropy=[0.1,0.1]"]
    algorithm = built(Cue(), *SMALL, *overrides, "algo.ppo.predict_weight=0", f"algo.ppo.repeat={repeat}")
    algorithm.train_step()
    scale = {"mean": torch.tensor(0.7), "std": torch.tensor(2.0)}
    algorithm.returns = scale  # in which the value function speaks so far
    params = {name: value.detach().clone().requires_grad_() for name, value in algorithm.params.items()}
    (trials,), (gradient,) = spied(algorithm)
    assert (trials.weight == 0).any()

    ppo, memory = algorithm.config.ppo, algorithm.agent.memory
    log_prob, value, entropy, advantage = [], [], [], []
    for row in range(16):
        steps = int(trials.weight[:, row].sum())
        hidden, values = memory.start(1, "cpu"), []
        for t in range(steps):
            inputs = trials.inputs[t, row][None]
            features, hidden = memory.step(params, inputs, hidden)
            x = F.relu(F.linear(torch.cat([features, inputs], 1), params["policy.hidden.weight"], params["policy.hidden.bias"]))
            logits = F.linear(x, params["policy.weight"], params["policy.bias"])
            policy = Categorical(logits=logits + (F.linear(inputs, params["repeat.weight"]) if repeat else 0))
            log_prob.append(policy.log_prob(trials.action[t, row]))
            entropy.append(policy.entropy())
            x = torch.cat([features, trials.clock[t, row][None]], 1)
            x = F.relu(F.linear(x, params["value.hidden.weight"], params["value.hidden.bias"]))
            values.append(F.linear(x, params["value.weight"], params["value.bias"])[0])
        value += values
        returns = (torch.cat(values).detach() * scale["std"] + scale["mean"]).tolist()
        advantage += naive_advantages(trials.reward[:steps, row].tolist(), returns, ppo.gamma, ppo.lambda_)
    log_prob, value, entropy = (torch.cat(x) for x in (log_prob, value, entropy))
    advantage = torch.tensor(advantage)
    target = advantage + value.detach() * scale["std"] + scale["mean"]
    target = (target - target.mean()) / target.std()
    advantage = (advantage - advantage.mean()) / advantage.std()
    loss = -(advantage * log_prob).mean() + ppo.value_weight * (value - target).square().mean() / 2 - 0.1 * entropy.mean()
    expected = torch.autograd.grad(loss, list(params.values()))
    for (name, mine), theirs in zip(gradient.items(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_an_action_is_repeated_at_first():
    """With probability e^2 / (e^2 + A - 1), whichever it was; the first one of a trial is any."""
    family = load("env", compose_train("env=bandit", "env.arms=50").env)
    family = family[0].Family(family[1])
    algorithm = built(family, *SMALL, "algo.tasks=500", "algo.envs=1", "algo.episodes=20", "algo.ppo.repeat=2")
    (trials,), _ = spied(algorithm)
    again = (trials.action[1:] == trials.action[:-1]).float().mean()
    assert again == pytest.approx(np.exp(2) / (np.exp(2) + 49), abs=0.01)
    assert trials.action[0].bincount(minlength=50).max() < 30


@pytest.mark.parametrize("segment", ["null", "5"])
@pytest.mark.parametrize("family", [Cue(), Dial()])
def test_ratios_start_at_one(family, segment):
    """What learning recalls is what acted: before the first update no probability has changed, and later ones have."""
    overrides = [*SMALL, "algo.episodes=3", f"algo.ppo.segment={segment}"]
    once, often = (built(family, *overrides, f"algo.ppo.epochs={epochs}") for epochs in (1, 4))
    for _ in range(3):
        first, later = once.train_step(), often.train_step()
        if "train/kl" in first:
            assert first["train/kl"] == pytest.approx(0, abs=1e-7)
            assert first["train/clipped"] == 0
            assert later["train/kl"] > 1e-5


@pytest.mark.parametrize("segment", ["null", "5"])
def test_a_minibatch_ends_with_its_longest_trial(segment, float64):
    """Steps after the end of all trials of a minibatch are left out, and its loss and gradients are the same."""
    algorithm = built(Cue(), *SMALL, "algo.memory.size=8", "algo.episodes=3", f"algo.ppo.segment={segment}")
    algorithm.train_step()
    (trials,), _ = spied(algorithm)
    lengths = trials.weight.sum(0)
    short = lengths.argsort()[:3]
    longest = int(lengths[short].max())
    assert longest < len(trials.weight)
    signal, weights = algorithm.signal(trials)[0], list(algorithm.params.values())
    fields = {name: x[:, short] for name, x in trials._asdict().items() if name != "starts"}
    padded = Trials(**fields, starts={name: x[:, short] for name, x in trials.starts.items()})
    losses = []
    for batch in (padded, trials.rows(short)):
        steps = len(batch.reward)
        loss, metrics = algorithm.loss(algorithm.params, batch, signal.rows(short, steps), 0.1, padded.weight)
        losses.append((steps, [*metrics.values(), loss, *torch.autograd.grad(loss, weights)]))
    (whole, expected), (cut, found) = losses
    assert (whole, cut) == (len(trials.weight), longest)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# (ratio, advantage) -> what is maximised, min(r A, clip(r) A), and whether it has a gradient
CLIPPED = {
    (0.5, 2.0): (1.0, True),
    (0.9, 2.0): (1.8, True),
    (1.1, 2.0): (2.2, True),
    (1.5, 2.0): (2.4, False),
    (0.5, -1.0): (-0.8, False),
    (0.9, -1.0): (-0.9, True),
    (1.1, -1.0): (-1.1, True),
    (1.5, -1.0): (-1.5, True),
}


def test_clipping_by_hand(float64):
    """No gradient where a change beyond the clip already pays; one where it harms. One case in the first step of each trial."""
    algorithm = built(Cue(), *SMALL, "algo.tasks=4", "algo.episodes=3", "algo.ppo.value_weight=0", "algo.ppo.predict_weight=0")
    algorithm.train_step()
    (trials,), _ = spied(algorithm)
    trials = trials._replace(weight=(torch.arange(len(trials.weight)) == 0)[:, None].double().expand_as(trials.weight))
    ratio, advantage = (torch.tensor(x).expand_as(trials.weight) for x in zip(*CLIPPED, strict=True))
    signal, _ = algorithm.signal(trials)
    params = {name: value.detach() for name, value in algorithm.params.items()}
    features = algorithm.agent.recall(params, trials, 12)
    now = algorithm.head(params, features, trials.inputs).log_prob(trials.action)
    before = (now - ratio.log()).requires_grad_()
    loss, metrics = algorithm.loss(params, trials, signal._replace(log_prob=before, advantage=advantage), 0.0)
    assert loss.item() == pytest.approx(-np.mean([objective for objective, _ in CLIPPED.values()]))
    (gradient,) = torch.autograd.grad(loss, before)
    assert (gradient[0] != 0).tolist() == [moves for _, moves in CLIPPED.values()]
    assert not gradient[1:].any()
    assert metrics["train/clipped"].item() == 0.5
    assert metrics["train/kl"].item() == pytest.approx(float((ratio - 1 - ratio.log()).mean()))


def test_what_ppo_learns_from_is_normalised_within_trials():
    algorithm = built(Cue(), *SMALL, "algo.episodes=3")
    algorithm.train_step()
    (trials,), _ = spied(algorithm)
    algorithm.iteration = 1  # so that this batch sets the values' mean and deviation
    signal, _ = algorithm.signal(trials)
    for found in (signal.advantage, signal.target):
        inside = found[trials.weight > 0]
        assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
        assert float(inside.std()) == pytest.approx(1, abs=1e-4)


def test_returns_are_followed_slowly():
    """The first batch sets their mean and deviation, later ones move them by a tenth."""
    algorithm = built(Buttons(horizon=1), *SMALL, "algo.episodes=1")
    found = []
    for _ in range(4):
        (trials,), _ = spied(algorithm)
        found.append(({name: float(x) for name, x in algorithm.returns.items()}, trials.reward))
    assert found[0][0] == {"mean": 0.0, "std": 1.0}, "the first iteration only measures rewards"
    mean, std = float(found[1][1].mean()), float(found[1][1].std())
    assert found[1][0] == pytest.approx({"mean": mean, "std": std})
    for _, reward in found[2:]:
        mean, std = 0.9 * mean + 0.1 * float(reward.mean()), 0.9 * std + 0.1 * float(reward.std())
    assert found[-1][0] == pytest.approx({"mean": mean, "std": std}, rel=1e-5)


# -- every family


SMALL_IMAGES = [name for name in ENVS if not name.startswith("atari")]


@pytest.mark.parametrize("name", slow_if(SMALL_IMAGES, lambda name: name not in KINDS))
def test_rl2_runs_on_every_family(name):
    """Two iterations and a trial, whatever the observations and actions are."""
    family = short(name)
    algorithm = built(family, *[o for o in tiny("rl2") if o.startswith("algo.")], "algo.tasks=2", iterations=2)
    start = [x.detach().clone() for x in flat(algorithm.params)]
    for _ in range(2):
        assert all(np.isfinite(v) for v in algorithm.train_step().values())
    moved = [not torch.equal(a, b.detach()) for a, b in zip(start, flat(algorithm.params), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert all(torch.isfinite(x).all() for x in flat(algorithm.weights()))
    tasks = family.sample_tasks(2, "test", numpy_rng(0, "tasks", "test"))
    for greedy in (True, False):
        returns, lengths = trials_on(family, tasks, algorithm, 1, greedy=greedy)
        assert returns.shape == lengths.shape == (2, 2, 1)
        assert torch.isfinite(returns).all()
        assert ((lengths >= 1) & (lengths <= min(family.spec.horizon, 20))).all()


def test_an_iteration_of_a_single_step_is_finite():
    overrides = ["algo.tasks=1", "algo.episodes=1", "algo.ppo.minibatches=1", "algo.memory.size=8"]
    algorithm = built(short("bandit"), *overrides, iterations=2)
    for _ in range(2):
        assert all(np.isfinite(v) for v in algorithm.train_step().values())
    assert all(torch.isfinite(x).all() for x in flat(algorithm.weights()))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algo.ppo.minibatches=7", "algo.tasks=3", "algo.envs=2"], "must not be above"),
        (["algo.memory.cell=transformer", "algo.memory.context=3", "algo.episodes=4"], "more than algo.memory.context=3"),
    ],
)
def test_what_cannot_learn_is_refused_at_once(overrides, said):
    with pytest.raises(Exception, match=said) as caught:
        built(Buttons(horizon=1), *SMALL, *overrides)
    assert isinstance(caught.value, UserError | ConfigError)

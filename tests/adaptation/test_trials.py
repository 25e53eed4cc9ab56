"""Trials: what the memory is fed, what is kept of it, and that rows, padding and other trials never leak into one another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from itertools import product
from unittest import mock

import pytest
import torch
from conftest import algorithms, compose_train, flat, tiny
from probes import Buttons, Cue, Dial
from torch import Tensor

from metarl_cli.adaptation.memory import Agent, Inputs, InputsConfig, MemoryPolicy, Prediction, collect_trials
from metarl_cli.config.models import TrainConfig
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Algorithm, Budget, Params, Policy, State, Step
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Continuous, Discrete, Spec

CPU = torch.device("cpu")
CELLS = ("gru", "lstm", "transformer")
EVERYTHING = InputsConfig(**dict.fromkeys(InputsConfig.model_fields, True))


def fed(*names: str) -> InputsConfig:
    """Only these inputs, beside what is always there."""
    return InputsConfig(**{name: name in names for name in InputsConfig.model_fields})


def agent_for(spec: Spec, cell: str = "gru", layers: int = 1, inputs: InputsConfig = EVERYTHING) -> tuple[Agent, Params]:
    """An agent, and weights large enough for every input to matter."""
    agent = Agent(MemoryConfig(cell=cell, size=8, layers=layers, timescale=2.0, heads=2, context=40), inputs, spec, CPU)
    return agent, jiggled(agent.memory.init(torch_rng(0, "init")), torch_rng(1, "init"))


def jiggled(state: State, rng: torch.Generator) -> State:
    """The same weights with noise on every one."""
    return {
        k: jiggled(v, rng) if isinstance(v, dict) else v + 0.3 * torch.randn(v.shape, generator=rng, dtype=v.dtype)
        for k, v in state.items()
    }


Act = Callable[[Tensor], Tensor]  # features [R, H] -> actions [R] or [R, D]


class Told:
    """A distribution that does what it is told, whatever is drawn."""

    def __init__(self, action: Tensor):
        self.action = action

    def sample(self, rng: torch.Generator) -> Tensor:
        return self.action


def randomly(spec: Spec, seed: int = 0) -> Act:
    """Acts at random, whatever the features."""
    rng = torch_rng(seed, "act")
    return lambda features: spec.actions.random(features[:, None], rng)[:, 0]


def collected(agent: Agent, params: Params, act: Act, family, task: Params, num_envs: int, episodes: int, *more) -> Trials:
    """Trials in which ``act`` chooses."""
    horizons = family.horizons(task)
    policy = MemoryPolicy(agent, params, lambda features, inputs: Told(act(features)), horizons, episodes, stochastic=True)
    env_rng, segment = more
    return collect_trials(family, task, policy, num_envs, episodes, env_rng, torch_rng(0, "chance"), segment)


def cue_task() -> Params:
    """Both sides, episodes of every length from 1 to 4."""
    return {"side": torch.tensor([-1.0, 1.0]).repeat(4), "length": torch.arange(1.0, 5.0).repeat_interleave(2)}


def cue_trials(cell: str = "gru", segment: int = 12, layers: int = 1, num_envs: int = 2) -> tuple[Agent, Params, Trials]:
    family = Cue()
    agent, params = agent_for(family.spec, cell, layers)
    rng = torch_rng(0, "env")
    return agent, params, collected(agent, params, randomly(family.spec), family, cue_task(), num_envs, 3, rng, segment)


# -- what the memory is fed


def test_inputs_by_hand():
    """Two episodes of two steps at the buttons, side 1: pressed 1, 0, 0, 1, for which 1, -1, -1, 1."""
    family = Buttons(horizon=2)
    agent, params = agent_for(family.spec, inputs=fed("product", "previous_obs", "clock"))
    agent.measured |= {"reward_mean": torch.tensor(0.5), "reward_scale": torch.tensor(2.0)}
    script = iter([1, 0, 0, 1])

    def act(features: Tensor) -> Tensor:
        return torch.full((1,), next(script))

    task = {"side": torch.tensor([1.0])}
    trials = collected(agent, params, act, family, task, 1, 2, torch_rng(0, "env"), 4)
    assert trials.action.flatten().tolist() == [1, 0, 0, 1]
    assert trials.reward.flatten().tolist() == [1, -1, -1, 1]
    assert trials.ended.flatten().tolist() == [False, True, False, True]
    # obs | previous action | reward | ended | action x reward | previous obs | share of the episode and of the trial
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],  # nothing came before, not even a reward of 0, which would be -0.25
        [1, 0, 1, 0.25, 0, 0, 0.25, 1, 0.5, 0],
        [1, 1, 0, -0.75, 1, -0.75, 0, 1, 0, 0.5],
        [1, 1, 0, -0.75, 0, -0.75, 0, 1, 0.5, 0.5],
    ]
    assert trials.inputs[:, 0].tolist() == expected
    assert trials.clock[:, 0].tolist() == [row[-2:] for row in expected]


@pytest.mark.parametrize("spec", [Buttons().spec, Cue().spec, Dial().spec])
def test_the_size_of_inputs(spec):
    for chosen in product([False, True], repeat=len(InputsConfig.model_fields)):
        config = InputsConfig(**dict(zip(InputsConfig.model_fields, chosen, strict=True)))
        inputs = Inputs(config, spec)
        made = inputs(torch.zeros(3, *spec.obs_shape), inputs.start(3, CPU), torch.zeros(3), torch.zeros(3, 2))
        assert made.shape == (3, inputs.size)


def test_observations_and_actions_are_about_one_in_size():
    pixels = Inputs(EVERYTHING, Spec(obs_shape=(1, 2, 2), actions=Discrete(2), horizon=1))
    assert pixels.flat(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)).tolist() == [[pytest.approx(0.2)] * 4] * 3
    scaled = Inputs(
        EVERYTHING, Spec(obs_shape=(2,), actions=Continuous((-1.0, 0.0), (3.0, 1.0)), horizon=1, obs_scale=(2.0, 4.0))
    )
    assert scaled.flat(torch.tensor([[2.0, 2.0]])).tolist() == [[1.0, 0.5]]
    assert scaled.vector(torch.tensor([[-1.0, 1.0], [1.0, 0.5]])).tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_what_can_be_taken_is_read_from_the_observation():
    spec = Spec(obs_shape=(4,), actions=Discrete(3, masked=True), horizon=1)
    obs = torch.tensor([[0.5, 1.0, 0.0, 1.0], [-0.5, 0.0, 1.0, 0.0]])
    inputs = Inputs(EVERYTHING, spec)
    made = inputs(obs, inputs.start(2, CPU), torch.ones(2), torch.ones(2, 2))
    assert inputs.legal(made).tolist() == [[True, False, True], [False, True, False]]
    assert Inputs(EVERYTHING, spec._replace(actions=Discrete(3))).legal(made) is None


def measured(rewards: list[list[float]], weight: list[list[float]]) -> list[float]:
    """Of trials in which the observation is the reward too."""
    agent, _ = agent_for(Buttons().spec)
    _, _, trials = cue_trials()
    reward = torch.tensor(rewards)
    agent.measure(trials._replace(reward=reward, weight=torch.tensor(weight), inputs=reward[..., None]))
    return [float(value) for value in agent.measured.values()]


def test_rewards_and_observations_are_measured_within_trials():
    full = [[1.0, 1.0], [1.0, 1.0]]
    assert measured([[1.0, 2.0], [3.0, 2.0]], full) == pytest.approx([2.0, (2 / 3) ** 0.5, 1.0])
    assert measured([[1.0, 2.0], [3.0, 99.0]], [[1.0, 1.0], [1.0, 0.0]]) == [2.0, 1.0, 1.0], (
        "what follows a trial does not count"
    )
    assert measured([[7.0, 7.0], [7.0, 7.0]], full) == [7.0, 1.0, 1.0], "always the same: nothing to scale"
    rare = [[100.0 if t == n == 0 else 0.0 for n in range(10)] for t in range(10)]  # mean 1, deviation 10
    assert measured(rare, [[1.0] * 10] * 10) == pytest.approx([1.0, 99 / 5, 100.0]), "a rare reward is seen as 5"


def test_summary_by_hand():
    _, _, trials = cue_trials()
    one, two = torch.tensor([[1.0, 2.0], [3.0, 50.0]]), torch.tensor([[True, True], [True, True]])
    found = trials._replace(reward=one, ended=two, weight=torch.tensor([[1.0, 1.0], [1.0, 0.0]])).summary()
    # returns 4 and 2; three steps, each of which ended an episode
    assert found == {"train/trial_return": 3.0, "train/reward": 2.0, "train/episode_length": 1.0}


# -- what is kept of trials


def test_trials_last_until_their_last_episode_ends():
    """Of 3 episodes of 1 to 4 steps each; what follows has no weight."""
    _, _, trials = cue_trials()
    lengths = 3 * cue_task()["length"].repeat_interleave(2)  # [M * N]
    assert len(trials.reward) == 12
    assert torch.equal(trials.weight, (torch.arange(12)[:, None] < lengths).float())
    assert (trials.ended * trials.weight).sum(0).tolist() == [3.0] * 16
    assert torch.equal(trials.ended, trials.terminated)
    assert (trials.reward * trials.weight).abs().sum(0).tolist() == [1.0] * 16, "asked once"
    step = torch.arange(12)[:, None] / (lengths / 3)
    inside = trials.weight > 0
    torch.testing.assert_close(trials.clock[..., 1][inside], ((step + 1e-4).floor() / 3)[inside])
    share = (torch.arange(12)[:, None] % (lengths / 3)) / 4  # of the horizon
    torch.testing.assert_close(trials.clock[..., 0][inside], share[inside])


def test_collection_stops_with_the_last_trial():
    family = Cue()
    agent, params = agent_for(family.spec)
    task = {name: value[:4] for name, value in cue_task().items()}  # lengths 1 and 2
    trials = collected(agent, params, randomly(family.spec), family, task, 1, 3, torch_rng(0, "env"), 4)
    assert len(trials.reward) == 6
    assert len(trials.starts["h"]) == 2


@pytest.mark.parametrize("cell", CELLS)
def test_every_trial_begins_alike_whatever_came_before(cell):
    """The memory begins anew: the first step of the second batch has the features of a fresh memory."""
    family = Cue()
    agent, params = agent_for(family.spec, cell, layers=2)
    first = [x.clone() for x in flat(agent.begin(6))]
    for seed in range(2):
        trials = collected(agent, params, randomly(family.spec, seed), family, cue_task(), 2, 3, torch_rng(seed, "env"), 12)
        assert all(torch.equal(a, b) for a, b in zip(first, flat(agent.begin(6)), strict=True))
        assert not trials.inputs[0, :, 2:].any(), "nothing came before"
        fresh, _ = agent.memory.step(params, trials.inputs[0], agent.memory.start(16, CPU))
        torch.testing.assert_close(trials.features[0], fresh, rtol=0, atol=1e-6)


def test_some_of_the_trials_have_all_that_is_theirs():
    _, _, trials = cue_trials(segment=5)
    number = torch.arange(16.0)
    labelled = trials._replace(reward=trials.reward * 0 + number, starts={"h": trials.starts["h"] * 0 + number[:, None, None]})
    parts = [labelled.rows(rows) for rows in torch.randperm(16, generator=torch_rng(0, "rows")).tensor_split(3)]
    assert [part.reward.shape[1] for part in parts] == [6, 5, 5]
    for part in parts:
        rows = part.reward[0].long()
        assert torch.equal(part.starts["h"], part.reward[0][:, None, None].expand_as(part.starts["h"]))
        for mine, whole in zip(part[:-1], labelled[:-1], strict=True):
            assert torch.equal(mine, whole[:, rows])


@pytest.mark.parametrize("variance", [1.0, 100.0])
def test_prediction_by_hand(variance):
    """Of the next observation and reward, told the action, but for the first observation of an episode and for padding."""
    memory = MemoryConfig(cell="gru", size=1, layers=1, timescale=2.0, heads=1, context=1)
    agent = Agent(memory, fed(), Cue().spec, CPU)
    agent.measured["obs_variance"] = torch.tensor(variance)
    prediction = Prediction(agent, hidden=1)
    # the hidden unit is memory + second action; it predicts itself as both observations, its double as the reward
    params = {
        "prediction.hidden.weight": torch.tensor([[1.0, 0.0, 1.0]]),
        "prediction.hidden.bias": torch.zeros(1),
        "prediction.weight": torch.tensor([[1.0], [1.0], [2.0]]),
        "prediction.bias": torch.zeros(3),
    }
    assert {name: x.shape for name, x in prediction.init(torch_rng(0, "init")).items()} == {
        n: x.shape for n, x in params.items()
    }
    features = torch.tensor([1.0, 2.0, 3.0, 99.0])[:, None, None]
    # obs | previous action | reward | ended
    fed_in = [[0, 0, 0, 0, 0, 0], [1, 3, 1, 0, 5, 0], [7, 7, 0, 1, 4, 1], [99] * 6]
    loss = prediction.loss(params, features, torch.tensor(fed_in)[:, None].float(), torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None])
    # 1 predicts (1, 1) and 2 of (1, 3) and 5; 2 + 1 predicts 6 of 4 where another episode begins
    assert float(loss) == pytest.approx(((0 + 4) / variance + 9 + 4) / 2)


# -- acting and learning see the same


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "segment"), [("transformer", 12), *[(c, s) for c in ("gru", "lstm") for s in (12, 5, 4, 1)]])
def test_recalled_features_are_those_acted_on(cell, segment, layers):
    """In one piece or in segments, for all trials or some of them."""
    agent, params, trials = cue_trials(cell, segment, layers)
    recalled = agent.recall(params, trials, segment)
    assert recalled.shape == (12, 16, 8)
    torch.testing.assert_close(recalled, trials.features, rtol=0, atol=1e-5)
    some = torch.tensor([3, 14, 0])
    torch.testing.assert_close(agent.recall(params, trials.rows(some), segment), trials.features[:, some], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("segment", [4, 5, 12])
def test_gradients_reach_back_to_the_start_of_a_segment(float64, cell, segment):
    """And no further, though the memory itself does."""
    agent, params, trials = cue_trials(cell, segment)
    inputs = trials.inputs.clone().requires_grad_()
    features = agent.recall(params, trials._replace(inputs=inputs), segment)
    for t in range(12):
        (gradient,) = torch.autograd.grad(features[t].sum(), inputs, retain_graph=True)
        reached = gradient.abs().amax(2) > 0  # [T, R]
        expected = (torch.arange(12) <= t) & (torch.arange(12) >= t - t % segment)
        assert torch.equal(reached, expected[:, None].expand_as(reached))


# -- whatever learns a memory


@cache
def config_of(algo: str, env: str, *overrides: str) -> TrainConfig:
    """Trials of 3 episodes of at most 30 steps."""
    families = (
        [f"env.families.{name}" for name in ("cartpole_family", "mountain_car_family")] if env == "classic_mix" else ["env"]
    )
    horizons = [f"{name}.horizon=30" for name in families]
    small = [override for override in tiny(algo) if not override.startswith("env.")]
    return compose_train(f"algo={algo}", f"env={env}", *small, *horizons, "algo.episodes=3", *overrides)


def built(algo: str, env: str, *overrides: str):
    """An algorithm whose weights all matter, and its family."""
    parts = build(config_of(algo, env, *overrides))
    parts.algorithm.load_weights(jiggled(parts.algorithm.weights(), torch_rng(0, "weights")))
    return parts.algorithm, parts.family


def acting(algorithm: Algorithm, task: Params) -> Policy:
    """Its policy on new tasks."""
    return next(algorithm.adapt(task, Budget(), torch_rng(0, "support"))).policy


def tensors(memory: State) -> list[Tensor]:
    return flat({name: value for name, value in memory.items() if name not in ("rng", "seen")})


@pytest.mark.parametrize(
    ("cell", "env"),
    [
        ("gru", "cartpole_family"),
        ("gru", "pendulum_family"),
        ("lstm", "cartpole_family"),
        ("transformer", "pendulum_family"),
        ("transformer", "classic_mix"),
    ],
)
@pytest.mark.parametrize("algo", algorithms(by="memory"))
def test_trials_together_are_trials_alone(algo, cell, env):
    """Four trials whose episodes end at different times, and each alone on what it saw: the same actions and memory."""
    whole = ["algo.replay.segment=null"] if algo == "rl2_dqn" and cell == "transformer" else []
    algorithm, family = built(algo, env, f"algo.memory.cell={cell}", "algo.memory.heads=2", *whole)
    task = family.sample_tasks(2, "test", numpy_rng(0, "tasks"))
    running, path = family.make(task, 2, torch_rng(0, "env")), []
    policy = acting(algorithm, task)
    memory = policy.start(2, torch_rng(0, "trial"))
    for _ in range(35):
        obs = running.obs
        action, memory = policy.act(memory, obs)
        step = running.step(action)
        memory = policy.observe(memory, obs, action, step)
        path.append((obs, action, step, [x.clone() for x in tensors(memory)]))
    if env == "cartpole_family":
        ended = torch.stack([step.terminated for _, _, step, _ in path]).flatten(1)
        assert (ended.any(1) & ~ended.all(1)).any(), "at different times"
    for row in range(4):
        m, n = divmod(row, 2)
        mine = slice(m, m + 1), slice(n, n + 1)
        single = acting(algorithm, {name: value[mine[0]] for name, value in task.items()})
        alone = single.start(1, torch_rng(0, "trial"))
        for obs, action, step, together in path:
            chosen, alone = single.act(alone, obs[mine])
            torch.testing.assert_close(chosen, action[mine], rtol=0, atol=1e-5)
            alone = single.observe(alone, obs[mine], action[mine], Step(*(x[mine] for x in step)))
            for a, b in zip(tensors(alone), together, strict=True):
                torch.testing.assert_close(a, b[row : row + 1], rtol=0, atol=1e-6)


def spoiled(trials: Trials, where: Tensor, segment: int, seed: int) -> Trials:
    """Everything else than it was, ``where [T, R]`` says so; but for the weight."""
    rng = torch_rng(seed, "spoil")

    def other(x: Tensor, at: Tensor) -> Tensor:
        noise = 3 * torch.randn(x.shape, generator=rng)
        changed = x + noise if x.dtype.is_floating_point else (noise > 0).to(x.dtype)
        return torch.where(at.view(*at.shape, *[1] * (x.dim() - 2)), changed, x)

    steps = {name: other(x, where) for name, x in trials._asdict().items() if name not in ("weight", "starts")}
    starts = {name: other(x, where[::segment]) for name, x in trials.starts.items() if name != "position"}
    return trials._replace(**steps, starts=trials.starts | starts)


def learned(algo: str, overrides: list[str], where=None) -> list[float | Tensor]:
    """What three iterations say and leave, with every batch of trials spoiled."""
    algorithm, _ = built(algo, "cartpole_family", *overrides)
    learning, batches = importlib.import_module(type(algorithm).__module__), []

    def changed(*arguments) -> Trials:
        trials = collect_trials(*arguments)
        batches.append(spoiled(trials, where(trials), arguments[-1], len(batches)) if where else trials)
        return batches[-1]

    with mock.patch.object(learning, "collect_trials", changed):
        metrics = [algorithm.train_step() for _ in range(3)]
    assert all((batch.weight == 0).any() for batch in batches), "there is padding"
    return [x for found in metrics for x in found.values()] + flat(algorithm.weights())


def equal(ones, others) -> bool:
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(ones, others, strict=True))


VARIANTS = {
    "rl2": [
        [],
        ["algo.memory.cell=lstm", "algo.ppo.predict_weight=0"],
        ["algo.memory.cell=transformer", "algo.memory.heads=2"],
        ["algo.ppo.segment=7", "algo.ppo.predict_weight=1"],
    ],
    "rl2_dqn": [[], ["algo.replay.segment=4", "algo.replay.burn_in=2"]],
}


@pytest.mark.parametrize(("algo", "overrides"), [(a, o) for a in algorithms(by="memory") for o in VARIANTS.get(a, [[]])])
def test_padding_changes_nothing(algo, overrides):
    """Whatever follows a trial's end: every metric, statistic and weight keeps its bits."""
    plain = learned(algo, overrides)
    assert equal(plain, learned(algo, overrides, lambda trials: trials.weight == 0))
    assert all(torch.isfinite(torch.as_tensor(x)).all() for x in plain)


@pytest.mark.parametrize("algo", algorithms(by="memory"))
def test_every_step_within_a_trial_counts(algo):
    """What the test above compares does change with the last step of a single trial."""

    def last(trials: Trials) -> Tensor:
        before_padding = trials.weight - torch.cat([trials.weight[1:], torch.zeros_like(trials.weight[:1])])
        return (before_padding > 0) & (torch.arange(len(trials.weight[0])) == 0)

    assert not equal(learned(algo, []), learned(algo, [], last))

"""RL² by Q-learning against numbers worked out by hand: returns, discounts, what is replayed, how it explores."""

from __future__ import annotations

import pytest
import torch
from conftest import compose_train, load, tiny
from probes import Cue
from torch import Tensor

from metarl_cli.algos.rl2_dqn import RL2DQN
from metarl_cli.config.registry import ConfigError
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.returns import trial_returns
from metarl_cli.experience.trial_replay import Batch, ReplayConfig, TrialReplay
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Context, Policy, State
from metarl_cli.runs.build import build
from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import Bins, Continuous, Discrete

CPU = torch.device("cpu")


def built(env: str, *overrides: str) -> RL2DQN:
    algorithm = build(compose_train("algo=rl2_dqn", *tiny("rl2_dqn"), f"env={env}", *overrides)).algorithm
    assert isinstance(algorithm, RL2DQN)
    return algorithm


# -- targets


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        (0.0, [1 + 0.5 * 6, 2 + 0.25 * 8, 3]),
        (1.0, [1 + 0.5 * (2 + 0.25 * 3), 2 + 0.25 * 3, 3]),
        (0.5, [1 + 0.5 * (3 + (2 + 0.25 * 5.5) / 2), 2 + 0.25 * (4 + 1.5), 3]),
    ],
)
def test_returns_of_a_trial_by_hand(lambda_, expected):
    """Three steps, an episode's end after the second; padding of any size follows, or nothing does."""
    reward, discount, value = (torch.tensor(x)[:, None] for x in ([1.0, 2.0, 3.0], [0.5, 0.25, 0.0], [4.0, 6.0, 8.0]))
    assert trial_returns(reward, discount, value, lambda_).flatten().tolist() == expected
    padded = [torch.cat([x, torch.full((2, 1), y)]) for x, y in ((reward, 1e6), (discount, 0.0), (value, -1e9))]
    assert trial_returns(*padded, lambda_)[:3].flatten().tolist() == expected


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_the_step_beyond_a_segment_only_bootstraps(lambda_):
    reward, discount, value = (torch.tensor(x)[:, None] for x in ([1.0, 2.0], [0.5, 0.5], [4.0, 6.0]))
    assert trial_returns(reward, discount, value, lambda_).flatten().tolist() == [1 + 0.5 * 6, 6.0]


def steps(**values: list) -> dict[str, Tensor]:
    return {name: torch.tensor(value)[:, None] for name, value in values.items()}


@pytest.mark.parametrize(
    ("double", "kind", "expected"),
    [
        # targets 0.5 * 2 + 0.5 * Q_slow(1, a), then 0.5 * 4; Q of the choices 3 and 1, errors against them
        (True, "squared", ((3 - 6) ** 2 + (1 - 2) ** 2) / 2),  # a = 1, where the learning network is greater
        (False, "squared", ((3 - 11) ** 2 + (1 - 2) ** 2) / 2),  # a = 0, where the slow copy is
        (True, "huber", (2.5 + 0.5) / 2),
    ],
)
def test_loss_by_hand(double, kind, expected):
    algorithm = built(
        "bandit",
        "env.arms=2",
        "algo.dqn.reward_scale=0.5",
        f"algo.dqn.double={double}",
        f"algo.dqn.loss={kind}",
        "algo.dqn.lambda=0",
        "algo.dqn.predict_weight=0",
    )
    algorithm.features = lambda params, batch: torch.zeros(())
    algorithm.values = lambda params, features, inputs: params["q"]
    online = torch.tensor([[[3.0, 0.0]], [[-1.0, 1.0]], [[5.0, 9.0]]], requires_grad=True)
    slow = torch.tensor([[[7.0, 7.0]], [[20.0, 10.0]], [[1e9, 1e9]]])
    batch = Batch(
        inputs=torch.zeros(3, 1, 4),
        start={},
        **steps(action=[0, 1, 0], reward=[2.0, 4.0, 1e9], discount=[0.5, 0.0, 0.0], weight=[1.0, 1.0, 0.0]),
    )
    loss, q = algorithm.loss({"q": online}, {"q": slow}, batch)
    assert loss.item() == pytest.approx(expected)
    assert float(q) == 2
    (gradient,) = torch.autograd.grad(loss, online)
    assert (gradient != 0).flatten().tolist() == [True, False, False, True, False, False], "only what was chosen in the trial"


def trials_of(reward: Tensor, **changes: Tensor) -> Trials:
    """Trials ``[T, R]`` of which nothing but what is given matters."""
    zeros = torch.zeros_like(reward)
    fields = {
        "inputs": zeros[..., None],
        "action": zeros.long(),
        "reward": reward,
        "ended": zeros > 0,
        "terminated": zeros > 0,
        "weight": zeros + 1,
        "clock": torch.zeros(*reward.shape, 2),
        "features": zeros[..., None],
        "starts": {},
    }
    return Trials(**fields | changes)


@pytest.mark.parametrize(("wait", "early"), [(True, 0.5**3), (False, 0.5)])
def test_discounts_by_hand(wait, early):
    """Two episodes of at most 4 steps: the first ends after 2 of them, the second at the time limit; then padding."""
    algorithm = built("cartpole_family", "env.horizon=4", "algo.dqn.gamma=0.5", f"algo.dqn.wait={wait}")
    ended = torch.tensor([0, 1, 0, 0, 0, 1, 1, 0])[:, None] > 0
    clock = torch.tensor([0, 1, 0, 1, 2, 3, 0, 1])[:, None] / 4
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])[:, None]
    terminated = torch.tensor([0, 1, 0, 0, 0, 0, 0, 0])[:, None] > 0
    changes = {"ended": ended, "terminated": terminated, "weight": weight, "clock": torch.stack([clock, clock], -1)}
    trials = trials_of(torch.ones(8, 1), **changes)
    assert algorithm.discounts(trials, torch.full((1,), 4.0)).flatten().tolist() == [0.5, early, 0.5, 0.5, 0.5, 0, 0, 0]
    full = trials._replace(weight=torch.ones(8, 1))
    assert algorithm.discounts(full, torch.full((1,), 4.0))[5].item() == 0.5, "an episode of full length waits for nothing"
    cut = trials._replace(terminated=torch.zeros(8, 1) > 0)
    assert algorithm.discounts(cut, torch.full((1,), 4.0))[1].item() == 0.5, (
        "nor one whose family has a shorter time limit than others of a mix"
    )


# -- replay

LENGTHS = [7, 3, 12, 1]


def replay_of(lengths: list[int], **values: int | None) -> TrialReplay:
    """Trials of at most 12 steps whose rewards number all steps, 100 apart; -1 in padding."""
    config = ReplayConfig(**{"capacity": len(lengths), "batch": 400, "segment": 4, "burn_in": 2} | values)
    replay = TrialReplay(config, 12, CPU)
    add(replay, lengths)
    return replay


def add(replay: TrialReplay, lengths: list[int]) -> None:
    t = torch.arange(max(lengths))[:, None]
    inside = t < torch.tensor(lengths)
    number = torch.where(inside, 100 * torch.arange(len(lengths)) + t, -1).float()
    starts = {"h": number[:: replay.stride, :, None]}
    trials = trials_of(number, weight=inside.float(), inputs=number[..., None], starts=starts)
    replay.add(trials, torch.where(t + 1 < torch.tensor(lengths), 0.9, 0.0))


@pytest.mark.parametrize("burn_in", [0, 2, 3, 8, 12])
@pytest.mark.parametrize("segment", [4, 5, 12])
def test_segments_are_stretches_of_one_trial(segment, burn_in):
    replay = replay_of(LENGTHS, segment=segment, burn_in=burn_in)
    batch, seen = replay.sample(torch_rng(0, "minibatch")), set()
    for b in range(400):
        number = batch.reward[:, b].long()
        length, begin = LENGTHS[int(number[0]) // 100], int(number[0]) % 100
        inside = min(len(number), length - begin)
        assert number[:inside].tolist() == list(range(int(number[0]), int(number[0]) + inside)), "time goes on step by step"
        learned = (number[batch.weight[:, b] > 0] % 100).tolist()
        first = learned[0]
        assert first % segment == 0
        assert begin == max(first - burn_in, 0)
        assert learned == list(range(first, min(first + segment, length)))
        assert (batch.discount[:inside, b] == 0).tolist() == [begin + t + 1 == length for t in range(inside)]
        if length > first + segment:
            assert number[first + segment - begin] % 100 == first + segment, "what follows is there to bootstrap from"
        assert batch.start["h"][b] == number[0], "the memory that acted there"
        seen.add((int(number[0]) // 100, first))
    assert seen == {(row, first) for row, length in enumerate(LENGTHS) for first in range(0, length, segment)}


def test_all_trials_are_equally_likely_and_all_segments_of_each():
    replay = replay_of(LENGTHS, batch=20_000)
    batch = replay.sample(torch_rng(0, "minibatch"))
    steps_learned = batch.weight.sum(0)
    assert float((steps_learned == 4).float().mean()) == pytest.approx((1 / 2 + 1) / 4, abs=0.02)
    assert float((steps_learned == 3).float().mean()) == pytest.approx((1 / 2 + 1) / 4, abs=0.02)
    assert set(batch.reward[batch.weight > 0].tolist()) == {100 * row + t for row, n in enumerate(LENGTHS) for t in range(n)}


def test_whole_trials_are_cut_at_the_longest_drawn():
    replay = replay_of([3, 2], segment=None, burn_in=0)
    batch = replay.sample(torch_rng(0, "minibatch"))
    assert batch.reward.shape == (3, 400)
    assert set(batch.weight.sum(0).tolist()) == {2.0, 3.0}
    assert batch.start == {}, "every trial begins with an empty memory"
    assert replay.stride == replay.horizon, "no memories are kept on the way"


def test_new_trials_push_out_the_oldest_and_leave_nothing():
    torn, fresh = replay_of([12, 12, 12]), replay_of([2, 5, 3])
    add(torn, [2, 5, 3])
    assert torn.added == 6
    for one, other in zip(torn.sample(torch_rng(1, "m")), fresh.sample(torch_rng(1, "m")), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else torch.equal(one["h"], other["h"])
    add(torn, [4])
    assert torn.lengths.tolist() == [4, 5, 3]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("burn_in", [0, 2, 12])
def test_segments_have_the_values_of_the_whole_trial(float64, cell, burn_in):
    """From the memory that acted; or, with all that came before as burn-in, from an empty one."""
    segment = ["algo.replay.segment=4", f"algo.replay.burn_in={burn_in}", "algo.replay.batch=60"]
    memory = [f"algo.memory.cell={cell}", "algo.memory.layers=2"]
    config = compose_train("algo=rl2_dqn", *tiny("rl2_dqn"), "algo.episodes=3", *memory, *segment)
    module, values = load("algo", config.algo)
    algorithm = module.Algo(values, Context(Cue(), None, 10, 0, CPU))
    trials = algorithm._collect(1.0)
    algorithm.replay.add(trials, algorithm.discounts(trials, torch.full((6,), 4.0)))
    whole = algorithm.values(algorithm.params, algorithm.agent.recall(algorithm.params, trials, 12), trials.inputs)
    number = torch.arange(whole.shape[1])[:, None] * 100.0 + torch.arange(len(whole))  # tells where a step is from
    algorithm.replay.steps["reward"][: len(number), : len(whole)] = number
    batch = algorithm.replay.sample(torch_rng(1, "minibatch"))
    if burn_in == 12:
        batch = batch._replace(start={name: torch.zeros_like(value) for name, value in batch.start.items()})
    learned = batch.weight > 0
    row, t = (batch.reward[learned] // 100).long(), (batch.reward[learned] % 100).long()
    assert set(t.tolist()) == set(range(len(whole)))
    torch.testing.assert_close(algorithm.q(algorithm.params, batch)[learned], whole[t, row], rtol=0, atol=1e-10)


# -- exploring


class Fixed(Policy):
    """Always the same actions; it counts how often it is asked."""

    asked = 0

    def __init__(self, action: Tensor):
        self.action = action

    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        self.asked += 1
        return self.action, state


def acted(policy: Policy, obs: Tensor, steps: int, rng: torch.Generator) -> Tensor:
    """What it does, step after step, where nothing changes: ``[T, M, N, ...]``."""
    state, actions = policy.start(obs.shape[1], rng), []
    for _ in range(steps):
        action, state = policy.act(state, obs)
        actions.append(action)
    return torch.stack(actions)


def epsilons(kind: str, epsilon: Tensor) -> list[tuple[slice, Tensor | float]]:
    """The rows of 4 tasks with 400 environments each, and what says their shares ``[4]``."""
    if kind == "float":
        return [(slice(m, m + 1), float(share)) for m, share in enumerate(epsilon)]
    return [(slice(0, 4), epsilon if kind == "[M]" else epsilon[:, None].expand(4, 400))]


@pytest.mark.parametrize("kind", ["float", "[M]", "[M, N]"])
@pytest.mark.parametrize("repeat", [1, 3, 5])
def test_the_share_of_random_steps_is_epsilon(repeat, kind):
    """Of every task, from the first step on; a random action lasts."""
    shares = torch.tensor([0.0, 0.2, 0.6, 1.0])
    for rows, epsilon in epsilons(kind, shares):
        greedy = Fixed(torch.full((4, 400), 3)[rows])
        policy = EpsilonGreedy(greedy, Discrete(10), epsilon, repeat)
        chosen = acted(policy, torch.zeros(len(greedy.action), 400, 1), 200, torch_rng(0, "exploration"))
        share = (chosen != 3).float().mean((0, 2)) / 0.9  # one in ten random choices is the best one
        assert share.tolist() == pytest.approx(shares[rows].tolist(), abs=0.02)
        first = (chosen[0] != 3).float().mean(1) / 0.9
        assert first.tolist() == pytest.approx(shares[rows].tolist(), abs=0.1)
        if float(shares[rows][-1]) == 1:
            kept = (chosen[1:, -1] == chosen[:-1, -1]).float().mean()  # where all is random
            assert float(kept) == pytest.approx(1 - 0.9 / repeat, abs=0.01)


@pytest.mark.parametrize("repeat", [1, 3])
def test_the_whole_share_asks_nobody_and_no_share_draws_nothing(repeat):
    greedy, obs, rng = Fixed(torch.full((2, 5), 3)), torch.zeros(2, 5, 1), torch_rng(0, "exploration")
    acted(EpsilonGreedy(greedy, Discrete(10), 1.0, repeat), obs, 4, rng)
    assert greedy.asked == 0
    assert (acted(EpsilonGreedy(greedy, Discrete(10), 0.0, repeat), obs, 4, rng) == 3).all()
    assert greedy.asked == 4


def test_no_share_draws_nothing():
    rng = torch_rng(0, "exploration")
    before = rng.get_state()
    acted(EpsilonGreedy(Fixed(torch.full((2, 5), 3)), Discrete(10), 0.0), torch.zeros(2, 5, 1), 4, rng)
    assert torch.equal(before, rng.get_state())


def test_a_random_action_that_lasts_is_replaced_where_it_cannot_be_taken():
    """Two of four actions can be taken, others at every step."""
    actions, rng = Discrete(4, masked=True), torch_rng(0, "exploration")
    policy = EpsilonGreedy(Fixed(torch.zeros(1, 500).long()), actions, torch.full((1, 500), 1.0), 3)
    state = policy.start(500, rng)
    for t in range(20):
        legal = [(t + 2) % 4, (t + 3) % 4]
        obs = torch.zeros(1, 500, 4)
        obs[..., legal] = 1
        chosen, state = policy.act(state, obs)
        assert set(chosen.flatten().tolist()) == set(legal)


def test_each_dimension_is_explored():
    policy = EpsilonGreedy(Fixed(torch.zeros(1, 2000, 2)), Bins(Continuous((0.0, 0.0), (2.0, 2.0)), 3), torch.ones(1))
    (chosen,) = acted(policy, torch.zeros(1, 2000, 1), 1, torch_rng(0, "exploration"))[:, 0].long()
    assert chosen.shape == (2000, 2)
    assert torch.bincount(chosen[:, 0] * 3 + chosen[:, 1]).tolist() == pytest.approx([222] * 9, abs=60)


class Coin(Policy):
    """Action 1 in a share of 0.7 of the steps where it is sampled; greedily always."""

    stochastic = True

    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        ones = torch.ones(obs.shape[:2])
        chosen = ones if state["rng"] is None else torch.bernoulli(0.7 * ones, generator=state["rng"])
        return chosen.long(), state


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_a_stochastic_policy_is_sampled_where_nothing_is_explored(epsilon):
    policy = EpsilonGreedy(Coin(), Discrete(2), epsilon)
    chosen = acted(policy, torch.zeros(2, 4000, 1), 1, torch_rng(0, "exploration"))
    assert float(chosen.float().mean()) == pytest.approx((1 - epsilon) * 0.7 + epsilon / 2, abs=0.02)
    greedy = acted(Coin(), torch.zeros(2, 4000, 1), 1, torch_rng(0, "exploration"))
    assert greedy.all(), "which by itself it is not"


# -- the whole


@pytest.mark.parametrize(("env", "segment"), [("pendulum_family", "6"), ("classic_mix", "null"), ("classic_mix", "6")])
def test_every_kind_of_action_is_learned(env, segment):
    """Vectors, and actions of which some cannot be taken: numbers stay numbers."""
    horizons = [f"env.families.{name}.horizon=10" for name in ("cartpole_family", "mountain_car_family")]
    overrides = [o for o in tiny("rl2_dqn") if not o.startswith("env.")]
    overrides += horizons if env == "classic_mix" else ["env.horizon=10"]
    config = compose_train("algo=rl2_dqn", f"env={env}", *overrides, f"algo.replay.segment={segment}", "algo.dqn.lambda=0.5")
    algorithm = build(config).algorithm
    before = {name: value.detach().clone() for name, value in algorithm.params.items()}
    found = [algorithm.train_step() for _ in range(3)][-1]
    assert all(value == value and abs(value) < 1e6 for value in found.values())
    assert found["loss/td"] > 0
    assert all(not torch.equal(before[name], value) for name, value in algorithm.params.items() if "value.bias" not in name)


def test_the_slow_copy_follows_and_is_tested():
    algorithm = built("bandit", "algo.dqn.target.every=3", "algo.dqn.target.polyak=1", "algo.dqn.use_average=true")
    for _ in range(2):
        algorithm.train_step()
    assert algorithm.updates == 2
    assert not any(torch.equal(algorithm.slow[k], v) for k, v in algorithm.params.items() if k.endswith("weight"))
    assert algorithm.tested() is algorithm.slow
    algorithm._update(algorithm.replay.sample(torch_rng(0, "m")))
    assert all(torch.equal(algorithm.slow[k], v) for k, v in algorithm.params.items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algo.replay.capacity=5", "replay.capacity must hold at least the tasks x envs trials"),
    ],
)
def test_what_does_not_fit_together_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        compose_train("algo=rl2_dqn", *tiny("rl2_dqn"), "algo.replay.burn_in=3", override)

"""Trading, queues, recommendation, car following and the arm with torques: dynamics and optima against known answers."""

import math
from itertools import product

import pytest
import torch
from conftest import compose_train, load

from metarl_cli.envs import arm, following
from metarl_cli.envs.links import hand
from metarl_cli.experience.rollout import RandomPolicy, collect, run_episodes
from metarl_cli.interfaces import Transitions
from metarl_cli.seeding import numpy_rng, torch_rng


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def random_support(ours, task, rollouts=8, steps=20):
    policy, env = RandomPolicy(ours.spec.actions), ours.make(task, rollouts, torch_rng(0, "support"))
    return collect(env, policy, policy.start(rollouts, torch_rng(0, "random")), steps, one_episode=True)


def returns(ours, task, policy, envs=1):
    """The mean return ``[M]`` of each task, and its standard error ``[M]``."""
    found = run_episodes(ours, task, policy, envs, torch_rng(0, "episodes"), torch_rng(0, "policy"))[0][0]
    return found.mean(1), found.std(1, correction=0) / envs**0.5


def nothing(support):
    """A support without a step."""
    return Transitions(*(field[:, :0] for field in support))


def stepped(ours, task, state, action):
    """What the dynamics make of one state ``[S]`` and action of one task."""
    constants = ours.constants({name: value[:, None] for name, value in task.items()})
    after, reward, terminated = ours.dynamics(state[None, None], action[None, None], constants, torch_rng(0, "noise"))
    assert not terminated.any()
    return after[0, 0], float(reward)


# -- trading


def test_trading_by_hand(float64):
    """The next return is the share of the last and noise; going from long to short costs twice the cost."""
    ours = family("trading")
    task = ours.named_task({"phi": -0.4, "cost": 0.15})
    noise = float(torch.randn(1, 1, generator=torch_rng(0, "noise")))
    after, reward = stepped(ours, task, torch.tensor([1.5, 1.0]), torch.tensor(0))
    assert after.tolist() == pytest.approx([-0.4 * 1.5 + noise, -1.0])
    assert reward == pytest.approx(-(-0.4 * 1.5 + noise) - 0.15 * 2)


def test_trading_without_cost_is_known_in_closed_form():
    """The sum of E|phi r_t|: with r_t normal of variance v_t, that is |phi| sqrt(2 v_t / pi), and v' = phi² v + 1."""
    ours, phis = family("trading"), [0.5, 0.8, -0.9, 0.0]
    found = ours.optimum({"phi": torch.tensor(phis), "cost": torch.zeros(4)})
    for phi, best in zip(phis, found.tolist(), strict=True):
        total, variance = 0.0, 1.0
        for _ in range(50):
            total += abs(phi) * math.sqrt(2 * variance / math.pi)
            variance = phi**2 * variance + 1
        assert best == pytest.approx(total, rel=1e-3, abs=1e-9)


def test_trading_is_worth_every_way_of_two_steps(float64):
    """Brute force: all positions after the first return, and after every second return, on a fine grid of normal returns."""
    phi, cost = 0.7, 0.2
    unit = torch.linspace(-8, 8, 401)
    chance = torch.softmax(-unit.square() / 2, 0)
    total = 0.0
    for first, weight in zip(unit.tolist(), chance.tolist(), strict=True):
        second = phi * first + unit
        ways = []
        for held in (-1, 0, 1):
            last = torch.stack([then * phi * second - cost * abs(then - held) for then in (-1, 0, 1)]).amax(0)
            ways.append(held * phi * first - cost * abs(held) + float((chance * last).sum()))
        total += weight * max(ways)
    found = family("trading", "env.horizon=2").optimum({"phi": torch.tensor([phi]), "cost": torch.tensor([cost])})
    assert float(found) == pytest.approx(total, rel=2e-3)


def test_a_trader_reads_the_trend():
    """The rule of a support is worth most of the optimum; without one it has nothing to trade on."""
    ours = family("trading")
    task = ours.sample_tasks(10, "validation", numpy_rng(0, "tasks"))
    support, best = random_support(ours, task), ours.optimum(task)
    mean, error = returns(ours, task, ours.rule(support), 20)
    assert 0.95 * float(best.mean()) < float(mean.mean()) < float((best + 3 * error).mean())
    assert not returns(ours, task, ours.rule(nothing(support)))[0].any()


def test_the_position_is_a_memory_of_the_trend():
    """Who follows a large return, and gives up after one against the position, earns without knowing the sign of phi."""
    ours = family("trading")
    env = ours.make(ours.sample_tasks(2000, "test", numpy_rng(0, "tasks")), 10, torch_rng(0, "episodes"))
    total = torch.zeros(2000, 10)
    for _ in range(ours.spec.horizon):
        last, held = env.obs.unbind(-1)
        begun = torch.where(last.abs() > 2, last.sign(), 0.0)
        kept = torch.where(last * held < -1, 0.0, held)
        total += env.step((torch.where(held == 0, begun, kept) + 1).long()).reward
    assert 2.2 < float(total.mean()) < 3.2


@pytest.mark.parametrize(("name", "value"), [("phi", 1.0), ("cost", -0.1)])
def test_a_market_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        family("trading").named_task({name: value})


# -- queues


def test_queues_by_hand(float64):
    """A job of the class that is served leaves, by chance; jobs arrive, by chance; what waits then costs."""
    ours = family("queues")
    task = ours.named_task({"cost_0": 0.1, "cost_1": 0.2, "cost_2": 0.05, "serve_1": 0.7, "arrive": 0.4})
    chance = torch.rand(1, 1, 4, generator=torch_rng(0, "noise"))[0, 0].tolist()
    for queue in ([3.0, 1.0, 0.0], [15.0, 0.0, 2.0]):
        expected = []
        for k in range(3):
            left = queue[k] - (k == 1 and queue[k] > 0 and chance[3] < 0.7)
            expected.append(min(left + (chance[k] < 0.4), 15))
        after, reward = stepped(ours, task, torch.tensor(queue), torch.tensor(1))
        assert after.tolist() == expected
        assert reward == pytest.approx(-(0.1 * expected[0] + 0.2 * expected[1] + 0.05 * expected[2]))
    shares = torch.stack([ours.make(task, 4000, torch_rng(0, "env")).step(torch.full((1, 4000), 1)).next_obs]).mean((0, 1, 2))
    assert (15 * shares).tolist() == pytest.approx([4.4, 4 - 0.7 + 0.4, 4.4], abs=0.15)


def queue_values(cost, serve, arrive, capacity, horizon, choose=None):
    """The expected return from each pair of queues, state by state; of the best choices, or of those of ``choose``."""
    lengths = list(product(range(capacity + 1), repeat=2))
    value = dict.fromkeys(lengths, 0.0)
    for _ in range(horizon):

        def worth(queue, k, value=value):
            total = 0.0
            for left, *came in product((0, 1), repeat=3):
                chance = serve[k] if left else 1 - serve[k]
                for one in came:
                    chance *= arrive if one else 1 - arrive
                after = [max(jobs - left * (j == k), 0) for j, jobs in enumerate(queue)]
                after = tuple(min(jobs + one, capacity) for jobs, one in zip(after, came, strict=True))
                total += chance * (value[after] - sum(c * jobs for c, jobs in zip(cost, after, strict=True)))
            return total

        value = {
            queue: max(worth(queue, 0), worth(queue, 1)) if choose is None else worth(queue, choose(queue)) for queue in lengths
        }
    starts = list(product(range(2, 7), repeat=2))
    return sum(value[queue] for queue in starts) / len(starts)


def test_queues_are_worth_the_best_choice_in_every_state(float64):
    """Brute force over all states; the cμ-rule is worth as much."""
    cost, serve, arrive = (0.1, 0.13), (0.8, 0.5), 0.2
    ours = family("queues", "env.classes=2", "env.capacity=8", "env.horizon=4")
    task = {"cost_0": cost[0], "cost_1": cost[1], "serve_0": serve[0], "serve_1": serve[1], "arrive": arrive}
    best = queue_values(cost, serve, arrive, 8, 4)
    assert float(ours.optimum(ours.named_task(task))) == pytest.approx(best, rel=1e-12)
    assert queue_values(cost, serve, arrive, 8, 4, lambda queue: 0 if queue[0] else 1) == pytest.approx(best, rel=1e-3)
    dearest = queue_values(cost, serve, arrive, 8, 4, lambda queue: 1 if queue[1] else 0)
    assert dearest < 1.02 * best, "the dearest first is worse"
    assert family("queues", "env.classes=5").optimum(family("queues", "env.classes=5").named_task({})) is None


def test_a_server_reads_costs_and_chances():
    """The rule of a support closes most of the way from serving the first that waits to the optimum."""
    ours = family("queues")
    task = ours.sample_tasks(30, "validation", numpy_rng(0, "tasks"))
    support, best = random_support(ours, task), float(ours.optimum(task).mean())
    adapted, before = (float(returns(ours, task, ours.rule(s), 30)[0].mean()) for s in (support, nothing(support)))
    assert before + 0.9 * (best - before) < adapted < best + 0.3


@pytest.mark.parametrize(("name", "value"), [("serve_0", 1.2), ("cost_1", -0.1), ("arrive", -0.1)])
def test_a_queue_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} (must be 0 or more|is a probability)"):
        family("queues").named_task({name: value})


# -- following


def driven(state, commands, headway, gusts):
    """The rewards of commands, written out for one car: gap, speeds and acceleration in SI units, from a state."""
    gap, speed, leader, acceleration = state[0] + 35, state[1] + 20, state[2] + 20, state[3]
    rewards = []
    for command, gust in zip(commands, gusts, strict=True):
        gap, speed, leader, acceleration = (
            gap + 0.2 * (leader - speed),
            speed + 0.2 * acceleration,
            20 + math.exp(-0.2 / 10) * (leader - 20) + 0.2 * gust,
            math.exp(-0.2 / 0.4) * acceleration + (1 - math.exp(-0.2 / 0.4)) * command,
        )
        error = gap - 2 - headway * speed
        rewards.append(-((error / 10) ** 2) - 0.02 * (leader - speed) ** 2 - 0.2 * command**2)
    return rewards, [gap - 35, speed - 20, leader - 20, acceleration]


def test_following_by_hand(float64):
    ours = family("following")
    rng, state = torch_rng(0, "noise"), torch.tensor([-3.0, 1.5, -0.7, 0.4])
    gust = float(torch.randn(1, 1, generator=rng))
    (reward,), expected = driven(state.tolist(), [-1.3], 1.2, [gust])
    after, found = stepped(ours, ours.named_task({"headway": 1.2}), state, torch.tensor([-1.3]))
    assert after.tolist() == pytest.approx(expected)
    assert found == pytest.approx(reward)
    far = stepped(ours, ours.named_task({"headway": 1.2}), torch.tensor([90.0, -20.0, -19.0, -3.0]), torch.tensor([9.0]))
    assert far[0].tolist()[1] == -20, "cars do not drive backwards"
    assert far[1] == pytest.approx(-4 - 0.02 * float(far[0][2] + 20) ** 2 - 0.2 * 4**2), "both bounds"


def test_the_riccati_equation_is_the_least_cost_of_all_commands(float64):
    """Brute force: without gusts, the cost of four commands is a quadratic function, and its least value a linear system's."""
    headway, state = 1.9, [-4.0, 0.3, -0.5, 0.2]

    def cost(commands):
        return -sum(driven(state, commands, headway, [0.0] * 4)[0])

    zero = torch.zeros(4)
    slope = torch.autograd.functional.jacobian(cost, zero)
    curve = torch.autograd.functional.hessian(cost, zero)
    best = torch.linalg.solve(curve, -slope)
    gain, value, _ = following.riccati(torch.tensor([headway]), 4)
    x = torch.tensor(state) + torch.tensor([35 - 2 - headway * 20, 0, 0, 0])
    assert float(x @ value[0] @ x) == pytest.approx(float(cost(best)), rel=1e-10)
    assert float(-gain[0] @ x) == pytest.approx(float(best[0]), rel=1e-10)


def test_a_driver_is_understood():
    """Comfort tells the headway: the rule of a support is worth the optimum, and without one it is far from it."""
    ours = family("following")
    task = ours.sample_tasks(12, "validation", numpy_rng(0, "tasks"))
    support, best = random_support(ours, task), ours.optimum(task)
    mean, error = returns(ours, task, ours.rule(support), 100)
    assert (mean < best + 4 * error).all()
    assert float(mean.mean()) > 1.02 * float(best.mean())
    usual = ours.rule(nothing(support))
    assert float(returns(ours, task, usual, 10)[0].mean()) < 3 * float(best.mean())
    told = following.follow(torch.full((12,), 1.5), ours.spec.horizon)
    obs = ours.make(task, 3, torch_rng(0, "env")).obs
    assert torch.equal(usual.choose(obs), told.choose(obs)), "without a support, the usual headway"


# -- the arm with torques


def kinetic_energy(angles, velocities, payload):
    """Of two rods of 1 kg and 0.5 m, as 400 points of mass each, and of the payload; from their speeds in the plane [J]."""

    def places(q):
        along = (torch.arange(400) + 0.5) / 800  # [m] from the near end
        both = q[0] + q[1]
        elbow = 0.5 * torch.stack([q[0].cos(), q[0].sin()])
        way = torch.stack([both.cos(), both.sin()])
        near = along[:, None] * torch.stack([q[0].cos(), q[0].sin()])
        return torch.cat([near, elbow + along[:, None] * way, (elbow + 0.5 * way)[None]])

    speeds = (places(angles + 1e-6 * velocities) - places(angles - 1e-6 * velocities)) / 2e-6
    masses = torch.cat([torch.full((800,), 1 / 400), torch.tensor([payload])])
    return (masses * speeds.square().sum(-1)).sum() / 2


def test_the_mass_matrix_is_that_of_the_kinetic_energy(float64):
    for elbow, payload in ((0.3, 0.0), (-2.0, 1.7)):
        q = torch.tensor([0.8, elbow])
        first, second, both = (float(kinetic_energy(q, torch.tensor(v), payload)) for v in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]))
        a, d, coupling = arm.inertia(torch.tensor(payload))
        c = coupling * math.cos(elbow)
        assert [float(a + 2 * c), float(d), float(d + c)] == pytest.approx(
            [2 * first, 2 * second, both - first - second], rel=1e-5
        )


def test_torques_and_accelerations_are_inverse(float64):
    entries, load = torch.randn(4, 5, 3, generator=torch_rng(0, "entries")), arm.inertia(torch.rand(5, 1))
    wanted = torch.randn(2, 5, 3, generator=torch_rng(1, "entries"))
    torch.testing.assert_close(arm.accelerations(entries, arm.torques(entries, wanted, load), load), wanted)


def test_energy_is_conserved_without_torque_and_friction(float64, monkeypatch):
    """Of an arm in motion, for 2.5 s: nearly with the family's steps, and better with steps of a fifth; friction takes it."""
    drift = {}
    for tau, friction in ((0.05, 0.0), (0.01, 0.0), (0.05, 0.5)):
        monkeypatch.setattr(arm, "TAU", tau)
        ours = family("arm", f"env.horizon={round(2.5 / tau) + 1}")
        env = ours.make(ours.named_task({"payload": 1.3, "friction": friction}), 1, torch_rng(0, "env"))
        env.load_state_dict({**env.state_dict(), "state": torch.tensor([[[-0.9, 1.8, 2.0, -3.0]]])})
        begin = kinetic_energy(*env.state[0, 0].chunk(2), 1.3)
        for _ in range(ours.spec.horizon - 1):
            env.step(torch.zeros(1, 1, 2))
        drift[tau, friction] = abs(float(kinetic_energy(*env.state[0, 0].chunk(2), 1.3) / begin - 1))
    assert drift[0.05, 0.0] < 0.03
    assert drift[0.01, 0.0] < 1e-4
    assert drift[0.05, 0.5] > 0.5


def test_the_arm_steps_as_its_equation_says(float64):
    """The midpoint method in a hundred steps, written out with the mass matrix as a linear system."""
    q, v, payload, applied = torch.tensor([-0.9, 1.8]), torch.tensor([0.7, -1.1]), 0.6, torch.tensor([6.0, -2.0])
    ours = family("arm")
    task = ours.named_task({"goal_x": 0.3, "goal_y": 0.4, "payload": payload})
    after, reward = stepped(ours, task, torch.cat([q, v]), torch.tensor([9.0, -2.0]))  # beyond the bound of 6

    def gained(q, v):
        coupling = 0.5 * 0.25 + payload * 0.25
        d, c, h = torch.tensor(0.25 / 3 + payload * 0.25), coupling * q[1].cos(), coupling * q[1].sin()
        a = 0.25 / 3 + 0.25 + payload * 0.25 + d
        mass = torch.stack([a + 2 * c, d + c, d + c, d]).view(2, 2)
        turning = torch.stack([-h * v[1] * (2 * v[0] + v[1]), h * v[0] ** 2])
        return torch.linalg.solve(mass, applied - 0.5 * v - turning)

    dt = 0.05 / 100
    for _ in range(100):
        middle = v + dt / 2 * gained(q, v)
        q, v = q + dt * middle, v + dt * gained(q + dt / 2 * v, middle)
    torch.testing.assert_close(after, torch.cat([q, v]), rtol=1e-4, atol=1e-4)
    x, y = hand(after[:2])
    assert reward == pytest.approx(-math.hypot(float(x) - 0.3, float(y) - 0.4))


def test_a_robot_finds_goal_and_payload():
    """The rule of a support is worth as much as computed torque that is told both; without one it stays."""
    ours = family("arm")
    task = ours.sample_tasks(20, "validation", numpy_rng(0, "tasks"))
    goal = torch.stack([task["goal_x"], task["goal_y"]], -1)
    torch.testing.assert_close(torch.stack(hand(arm.joints(goal)), -1), goal, rtol=0, atol=1e-6)
    support = random_support(ours, task)
    told, read, stays, light = (
        float(returns(ours, task, policy)[0].mean())
        for policy in (
            arm.computed_torque(goal, task["payload"]),
            ours.rule(support),
            ours.rule(nothing(support)),
            arm.computed_torque(goal, 0 * task["payload"]),
        )
    )
    assert read == pytest.approx(told, rel=0.02)
    assert stays < 5 * told
    assert light < told - 0.3, "the payload matters"
    with pytest.raises(ValueError, match="payload must be 0 or more"):
        ours.named_task({"payload": -1.0})


# -- recommendation


def clicks_of(ours, user, shown):
    """The expected clicks of items shown one after the other, written out."""
    total = 0.0
    for t, item in enumerate(shown):
        satiation = sum(weight for back, weight in enumerate((1.0, 0.6, 0.36), 1) if t >= back and shown[t - back] == item)
        fit = sum(a * b for a, b in zip(user, ours.items[item].tolist(), strict=True))
        total += 1 / (1 + math.exp(-(4 * fit - 2 * satiation - 1)))
    return total


def test_recommendations_are_worth_the_best_of_all_sequences(float64):
    """Clicks change nothing that comes: the best policy is a sequence of items, and there are 243 of them."""
    ours = family("recommendation", "env.items=3", "env.horizon=5")
    task = ours.sample_tasks(4, "test", numpy_rng(0, "tasks"))
    assert task["user"].norm(dim=-1).tolist() == pytest.approx([1] * 4)
    best = [max(clicks_of(ours, user, shown) for shown in product(range(3), repeat=5)) for user in task["user"].tolist()]
    assert ours.optimum(task).tolist() == pytest.approx(best, rel=1e-12)


def test_recommendations_by_hand():
    """Chances of clicks as written out, and what was shown as satiation; an episode begins anew."""
    ours = family("recommendation", "env.horizon=5")
    task = ours.sample_tasks(1, "test", numpy_rng(0, "tasks"))
    env, shown, total = ours.make(task, 4000, torch_rng(0, "env")), [2, 2, 7, 2, 7], 0.0
    for item in shown:
        seen, step = env.obs[0, 0], env.step(torch.full((1, 4000), item))
        total += float(step.reward.mean())
    assert seen[[2, 7]].tolist() == pytest.approx([1 + 0.36, 0.6]), "before the last step"
    assert seen.sum() == pytest.approx(1.96)
    assert total == pytest.approx(clicks_of(ours, task["user"][0].tolist(), shown), abs=5 * (5 / 4 / 4000) ** 0.5)
    assert not env.obs.any()


def test_satiation_tells_what_was_shown():
    """For all histories of three items and shorter ones: the number that plans are looked up by."""
    ours = family("recommendation", "env.items=4")
    histories = [*product(range(4), repeat=3), (1, 1, -1), (3, -1, -1), (-1, -1, -1)]  # the last first
    numbers = ours._history(ours.observe(torch.tensor(histories).float()[None]))[0].tolist()
    assert numbers == [(i % 5) * 25 + (j % 5) * 5 + k % 5 for i, j, k in histories]


def test_a_taste_is_found_by_clicks():
    """The rule that is told is worth the optimum, and that of a support most of it; without one, items take turns."""
    ours = family("recommendation")
    task = ours.sample_tasks(20, "validation", numpy_rng(0, "tasks"))
    support, best = random_support(ours, task), float(ours.optimum(task).mean())
    told, read, turns = (
        float(returns(ours, task, rule, 50)[0].mean())
        for rule in (ours.show(task["user"]), ours.rule(support), ours.rule(nothing(support)))
    )
    assert told == pytest.approx(best, abs=0.4)
    assert turns + 0.9 * (best - turns) < read < best + 0.4
    assert ours.named_task({"user_1": 0.5})["user"].tolist() == [[1, 0.5, 0, 0]]

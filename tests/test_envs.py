"""Every family of ``conf/env``, and the native physics against Gymnasium's."""

import gymnasium
import numpy as np
import pytest
import torch
from conftest import compose_train, options

from metarl_cli.actions import random_actions
from metarl_cli.building import load
from metarl_cli.seeding import numpy_rng, torch_rng

ENVS = options("env")


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def play(env, spec, rng):
    steps = []
    for _ in range(60):
        steps.append(env.step(random_actions(spec, env.obs, rng)))
    return [torch.stack(field) for field in zip(*steps, strict=True)]


@pytest.mark.parametrize("name", ["cartpole_family", "cartpole_physics", "cartpole_v1"])
def test_cartpole_equals_gymnasium(name, float64):
    """Step for step, in float64, on random physics, ends and time limit included.

    Every step starts from the same state: left alone, an unstable pole would amplify the last bit in which the sine and
    cosine of two libraries differ.
    """
    ours, num = family(name), 20
    tasks = ours.sample_tasks(num, "train", numpy_rng(0, "tasks"))
    env = ours.make(tasks, 1, torch_rng(0, "env"))
    theirs = [gymnasium.make("CartPole-v1", max_episode_steps=500) for _ in range(num)]
    for row, other in enumerate(theirs):
        inner = other.unwrapped
        for key, value in tasks.items():
            setattr(inner, key, float(value[row]))
        inner.total_mass = inner.masspole + inner.masscart  # Gymnasium stores what derives from the parameters
        inner.polemass_length = inner.masspole * inner.length
    rng, begin, seen = np.random.default_rng(0), [True] * num, {"terminated": 0, "truncated": 0}
    for _ in range(1000):
        for row, other in enumerate(theirs):
            if begin[row]:
                other.reset(seed=row)
            other.unwrapped.state = env.state[row, 0].numpy().copy()
        # push under the fall, half of the tasks too carelessly to reach the time limit
        angle = env.state[:, 0, 2] + 0.5 * env.state[:, 0, 3] + 0.05 * env.state[:, 0, 0] + 0.1 * env.state[:, 0, 1]
        action = ((angle > 0) == (tasks["force_mag"] > 0)).long()
        action = torch.where(torch.as_tensor(rng.random(num) < np.tile([0.0, 0.4], num // 2)), 1 - action, action)
        step = env.step(action[:, None])
        for row, other in enumerate(theirs):
            _, reward, terminated, truncated, _ = other.step(int(action[row]))
            assert float(step.reward[row]) == reward
            assert (bool(step.terminated[row]), bool(step.truncated[row])) == (terminated, truncated)
            np.testing.assert_allclose(step.next_obs[row, 0].numpy(), other.unwrapped.state, rtol=0, atol=2e-15)
            begin[row] = terminated or truncated
            seen["terminated"] += terminated
            seen["truncated"] += truncated
    assert min(seen.values()) > 0, "both ways to end were compared"


def test_cartpole_stops_at_the_time_limit(float64):
    ours = family("cartpole_v1", "env.horizon=7")
    env = ours.make(ours.sample_tasks(2, "test", numpy_rng(0, "t")), 3, torch_rng(0, "e"))
    for t in range(1, 22):
        step = env.step(torch.full((2, 3), t % 2))
        assert bool(step.truncated.all()) == (t % 7 == 0)
        assert not step.terminated.any()
        moved = (step.obs != step.next_obs).any(-1).all()
        assert bool(moved) == (t % 7 == 0), "obs is fresh exactly where the episode ended"


def test_reversible_actuators_come_in_both_signs():
    tasks = family("cartpole_family").sample_tasks(2000, "train", numpy_rng(0, "tasks"))
    force = tasks["force_mag"]
    assert 0.45 < float((force < 0).float().mean()) < 0.55
    assert 5 <= float(force.abs().min()) < 5.1
    assert 14.9 < float(force.abs().max()) <= 15
    assert float(family("cartpole_physics").sample_tasks(100, "train", numpy_rng(0, "t"))["force_mag"].min()) >= 5


def test_navigation_by_hand(float64):
    ours = family("navigation_2d")
    env = ours.make(ours.named_task({"goal_x": 0.3, "goal_y": 0.4}), 1, torch_rng(0, "e"))
    assert env.obs.tolist() == [[[0.0, 0.0]]]
    rewards = [float(env.step(torch.tensor([[a]])).reward) for a in (0, 1, 1, 1, 3, 3, 3, 3, 2, 4)]
    expected = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (2, 4), (2, 3)]
    assert rewards == pytest.approx([-float(np.hypot(0.3 - x / 10, 0.4 - y / 10)) for x, y in expected])


@pytest.mark.parametrize("name", ENVS)
def test_shapes_and_true_successor(name):
    ours = family(name)
    tasks = ours.sample_tasks(4, "train", numpy_rng(0, "tasks"))
    env = ours.make(tasks, 3, torch_rng(0, "env"))
    rng, before = torch_rng(0, "act"), env.obs
    for _ in range(60):
        step = env.step(random_actions(ours.spec, env.obs, rng))
        assert step.next_obs.shape == step.obs.shape == (4, 3, *ours.spec.obs_shape)
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (4, 3)
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
        assert torch.isfinite(step.next_obs).all()
        ended = step.terminated | step.truncated
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        assert torch.equal(step.obs, env.obs)
        before = step.obs
    assert before.dtype == torch.float32


@pytest.mark.parametrize("name", ENVS)
def test_state_round_trip_goes_on_with_the_same_bits(name):
    ours = family(name)
    tasks = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    env = ours.make(tasks, 2, torch_rng(0, "env"))
    play(env, ours.spec, torch_rng(0, "act"))
    saved = env.state_dict()
    saved = {k: v.clone() for k, v in saved.items()}
    first = play(env, ours.spec, torch_rng(1, "act"))
    other = ours.make(tasks, 2, torch_rng(9, "env"))
    other.load_state_dict(saved)
    second = play(other, ours.spec, torch_rng(1, "act"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ENVS)
def test_same_seed_same_episodes_other_seed_other(name):
    ours = family(name)
    tasks = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    runs = [play(ours.make(tasks, 2, torch_rng(s, "env")), ours.spec, torch_rng(s, "act")) for s in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize("name", ENVS)
def test_tasks_of_the_splits(name):
    ours = family(name)
    splits = ours.splits
    drawn = {s: ours.sample_tasks(50, s, numpy_rng(0, "tasks", s)) for s in splits}
    for split, tasks in drawn.items():
        fewer = ours.sample_tasks(7, split, numpy_rng(0, "tasks", split))
        assert all(torch.equal(fewer[k], tasks[k][:7]) for k in tasks), "the first tasks do not depend on the number"
    if ours.ranges:
        rows = [tuple(r) for tasks in drawn.values() for r in torch.stack(list(tasks.values()), 1).tolist()]
        assert len(set(rows)) == len(rows), "splits share no task"
    for split in splits[:3]:
        for key, (low, high) in ours.ranges.items():
            assert bool(((drawn[split][key].abs() >= low - 1e-6) | (drawn[split][key] >= low - 1e-6)).all())
            assert float(drawn[split][key].abs().max()) <= max(abs(low), abs(high)) + 1e-6
    if "ood" in drawn:
        outside = ours.outside({k: v.double().numpy() for k, v in drawn["ood"].items()})
        assert outside.all()


@pytest.mark.parametrize("name", [n for n in ENVS if n != "cartpole_v1"])
def test_every_task_parameter_matters(name):
    ours = family(name)
    for key, (low, high) in ours.ranges.items():
        results = []
        for value in (low, high):
            env = ours.make(ours.named_task({key: value}), 2, torch_rng(0, "env"))
            results.append(play(env, ours.spec, torch_rng(0, "act")))
        assert not all(torch.equal(a, b) for a, b in zip(*results, strict=True)), f"{key} changes nothing"


@pytest.mark.parametrize("name", ENVS)
def test_renders_a_frame(name):
    ours = family(name)
    task = ours.named_task({})
    env = ours.make(task, 1, torch_rng(0, "env"))
    image = env.render()
    assert len(image.getcolors(maxcolors=100_000)) > 1, "something is drawn"


def test_physics_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="masscart must be above 0"):
        family("cartpole_family").named_task({"masscart": -0.1})


def test_named_task_refuses_an_unknown_parameter():
    with pytest.raises(ValueError, match="no such task parameter: gravty"):
        family("cartpole_family").named_task({"gravty": 9.0})

"""MuJoCo's bodies, all copies at once, against Gymnasium's own environments with the same solver."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from conftest import ENVS, inherited
from pydantic import ValidationError

from metarl_cli.config.registry import ConfigError
from metarl_cli.envs import mujoco as bodies
from metarl_cli.envs.mujoco.bodies import BODIES
from metarl_cli.seeding import numpy_rng, torch_rng

mujoco = pytest.importorskip("mujoco")
robots = pytest.importorskip("robots")
family, shipped, reference, IDS = robots.family, robots.shipped, robots.reference, robots.IDS
SHIPPED = [name for name in ENVS if inherited("env", name)["module"] == "mujoco"]


def begin(env, ours, state):
    """Set a reference to a state of ours."""
    env.unwrapped.set_state(ours.position(state).numpy(), ours.velocity(state).numpy())


def exactly_placed(env):
    """Have a reference read places from the state after a step, not from the last stage of its integrator."""
    inner, step = env.unwrapped, env.unwrapped.do_simulation

    def do_simulation(ctrl, n_frames):
        step(ctrl, n_frames)
        mujoco.mj_kinematics(inner.model, inner.data)

    inner.do_simulation = do_simulation
    return env


def seen(body, obs):
    """What ours observes of Gymnasium's observation: of the arm neither the goal nor the way to it."""
    return obs[[0, 1, 2, 3, 6, 7]] if body == "reacher" else obs


def same(ours, env, references, steps, off=1e-12):
    """Compare observations, rewards and ends, step by step until an episode ends; returns the episodes that ended."""
    rng, ended = torch_rng(0, "act"), set()
    for _ in range(steps):
        action = ours.spec.actions.random(env.obs, rng)
        step = env.step(action)
        for i, other in enumerate(references):
            if i in ended:
                continue
            row, column = divmod(i, env.shape[1])
            obs, reward, terminated, *_ = other.step(action[row, column].numpy())
            mine = step.next_obs[row, column].numpy()
            if ours.config.body == "reacher":  # cosines and sines may differ in their last bit
                assert np.abs(mine - seen("reacher", obs)).max() < 1e-15
                assert np.array_equal(mine[4:], other.unwrapped.data.qvel[:2])
            else:
                assert np.array_equal(mine, obs), "to the last bit"
            assert float(step.reward[row, column]) == pytest.approx(reward, rel=1e-12, abs=off)
            assert bool(step.terminated[row, column]) == terminated
            if terminated:
                ended.add(i)
    return ended


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("body", IDS)
def test_a_body_equals_gymnasiums(body, exact, float64):
    """Rewards too, where Gymnasium reads places from the state; as it is, those of three bodies are a little off."""
    ours = family(body)
    env = ours.make(ours.named_task({}), 2, torch_rng(0, "env"))
    references = [exactly_placed(reference(body)) if exact else reference(body) for _ in range(2)]
    for i, other in enumerate(references):
        begin(other, ours, env.state[0, i])
        assert np.array_equal(env.obs[0, i].numpy(), seen(body, other.unwrapped._get_obs()))
    off = 1e-12 if exact else {"ant": 0.2, "humanoid": 0.005, "reacher": 0.003}.get(body, 1e-12)  # [m/s], of reacher [m]
    ended = same(ours, env, references, 60, off)
    assert bool(ended) == (body in ("hopper", "walker2d", "humanoid")), "some fall"


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("mass", ["body_mass", "body_inertia"]),
        ("friction", ["geom_friction"]),
        ("damping", ["dof_damping"]),
        ("strength", ["actuator_gear"]),
        ("gravity", ["opt.gravity"]),
    ],
)
def test_physics_are_multiplied(name, arrays, float64):
    ours = family(ranges={name: [0.5, 2.0]})
    task = {**ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))}
    env = ours.make(task, 1, torch_rng(0, "env"))
    references = []
    for i, factor in enumerate(task[name].tolist()):
        factors = {} if name == "gravity" else dict.fromkeys(arrays, factor)
        references.append(reference("half_cheetah", **factors))
        if name == "gravity":
            references[-1].unwrapped.model.opt.gravity[:] *= factor
        begin(references[-1], ours, env.state[i, 0])
    same(ours, env, references, 20)
    assert len(set(task[name].tolist())) == 3


def test_a_number_names_one_entry(float64):
    ours = family(ranges={"mass_2": [3.0, 3.0]})
    (model,) = ours.models_of(ours.named_task({"mass_2": 3.0}))
    ratio = model.body_mass[1:] / ours.models.nominal.body_mass[1:]
    assert ratio.tolist() == pytest.approx([1, 3, 1, 1, 1, 1, 1])
    for wrong in ("mass_0", "mass_8", "damping_0", "mass_x", "mass_", "mass_02", "weight", "velocity"):
        with pytest.raises(ValueError, match=f"no such task parameter: {wrong}"):
            family(ranges={wrong: [1.0, 2.0]})


def directions(velocity: torch.Tensor):
    """Cosine and sine for a velocity in x and y, the cosine for one in x alone."""
    return (torch.cos, torch.sin)[: velocity.shape[-1]]


def test_goals_by_hand(float64):
    """From the places before and after."""
    for name in SHIPPED:
        ours = shipped(name)
        task = ours.sample_tasks(4, "train", numpy_rng(0, "tasks"))
        env = ours.make(task, 2, torch_rng(0, "env"))
        for _ in range(3):
            before, action = env.state, ours.spec.actions.random(env.obs, torch_rng(1, "act"))
            step = env.step(action)
            if bool((step.terminated | step.truncated).any()):
                break
            place = ours.place(env.models, env.state)
            velocity = (place - ours.place(env.models, before)) / ours.period
            earned = {
                "forward": lambda velocity=velocity: velocity[..., 0],
                "direction": lambda velocity=velocity, task=task: sum(
                    velocity[..., i] * along(task["angle"][:, None]) for i, along in enumerate(directions(velocity))
                ),
                "velocity": lambda velocity=velocity, task=task: -(velocity[..., 0] - task["velocity"][:, None]).abs(),
                "position": lambda place=place, task=task: (
                    -((place[..., 0] - task["goal_x"][:, None]).abs() + (place[..., 1] - task["goal_y"][:, None]).abs())
                ),
                "reach": lambda place=place, task=task: (
                    -torch.hypot(place[..., 0] - task["goal_x"][:, None], place[..., 1] - task["goal_y"][:, None])
                ),
            }[ours.config.goal]()
            bonus = ours.config.healthy_reward if ours.body.height else 0.0
            cost = ours.config.control_cost * action.double().square().sum(-1)
            assert torch.allclose(step.reward, ours.config.goal_reward * earned + bonus - cost, rtol=1e-9, atol=1e-9), name


def test_cheetah_tasks_are_the_two_directions():
    ours = shipped("half_cheetah_dir")
    assert ours.finite
    assert sorted(set(ours.sample_tasks(8, "test", numpy_rng(0, "t"))["angle"].tolist())) == pytest.approx([0.0, math.pi])


@pytest.mark.parametrize("body", IDS)
def test_a_loaded_state_goes_on_with_the_same_bits(body):
    ours = family(body, ranges={"mass": [0.5, 2.0]}, horizon=30)
    task = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    env = ours.make(task, 2, torch_rng(0, "env"))
    rng = torch_rng(0, "act")
    for _ in range(20):
        env.step(ours.spec.actions.random(env.obs, rng))
    other = ours.make(task, 2, torch_rng(5, "env"))
    other.load_state_dict(env.state_dict())
    for _ in range(30):
        action = ours.spec.actions.random(env.obs, rng)
        for a, b in zip(env.step(action), other.step(action), strict=True):
            assert torch.equal(a, b)


def test_copies_and_threads_change_nothing():
    """A row of many is the row alone, with one thread or two."""
    torch.set_num_threads(2)
    try:
        several = family(ranges={"mass": [0.5, 2.0]})
    finally:
        torch.set_num_threads(1)
    alone = family(ranges={"mass": [0.5, 2.0]})
    task = alone.sample_tasks(4, "train", numpy_rng(0, "tasks"))
    env, rng = several.make(task, 3, torch_rng(0, "env")), torch_rng(0, "act")
    one = alone.make({name: value[2:3] for name, value in task.items()}, 3, torch_rng(0, "env"))
    state = env.state_dict()
    one.load_state_dict({**state, "state": state["state"][2:3], "clock": state["clock"][2:3]})
    for _ in range(10):
        action = alone.spec.actions.random(env.obs, rng)
        assert torch.equal(env.step(action).reward[2:3], one.step(action[2:3]).reward)
    env.select_rows(torch.tensor([False, False, True, False]))
    action = alone.spec.actions.random(env.obs, rng)
    assert torch.equal(env.step(action).next_obs, one.step(action).next_obs)


@pytest.mark.parametrize("body", IDS)
def test_a_body_is_drawn_without_a_screen(body):
    ours = family(body)
    image = np.asarray(ours.make(ours.named_task({}), 1, torch_rng(0, "env")).render())
    assert image.shape == (200, 320, 3)
    assert (image[..., 2] > image[..., 0] + 60).sum() > 200, "there is a body"


def test_a_body_falls_where_it_may_and_ends_where_that_ends_episodes(float64):
    """By heights and angles written down by hand; a hopper or walker sees velocities within 10."""
    for body, state, fallen in (
        ("ant", {2: 0.5}, False),
        ("ant", {2: 0.19}, True),
        ("ant", {2: 1.01}, True),
        ("hopper", {1: 0.69}, True),
        ("hopper", {2: 0.21}, True),
        ("hopper", {5: 101.0}, True),
        ("walker2d", {1: 0.79}, True),
        ("walker2d", {2: -1.01}, True),
        ("walker2d", {2: 0.9}, False),
        ("humanoid", {2: 0.99}, True),
        ("humanoid", {2: 2.01}, True),
        ("humanoid", {2: 1.01}, False),
    ):
        for terminate in (True, False):
            ours = family(body, terminate=terminate)
            env = ours.make(ours.named_task({}), 1, torch_rng(0, "env"))
            moved = env.state.clone()
            for place, value in state.items():
                moved[0, 0, 1 + place] = value
            reward, ended = ours.reward_and_end(
                env.models, env.state, moved, torch.zeros(1, 1, ours.spec.actions.size), env.task
            )
            assert bool(ended) == (fallen and terminate), (body, state)
            walked = ours.place(env.models, moved) - ours.place(env.models, env.state)
            paid = ours.config.goal_reward * float(walked[..., 0]) / ours.period
            assert float(reward) == pytest.approx(paid + ours.config.healthy_reward * (not fallen))
    ours = family("walker2d")
    state = ours.initial_state((1, 1), torch.zeros(1), torch_rng(0, "env"))
    state[..., 1 + ours.nq :] = 30.0
    assert float(ours.observe(state)[..., -1]) == 10


def test_a_fork_steps_on():
    """Threads do not outlast a fork: the child makes its own."""
    torch.set_num_threads(2)
    try:
        ours = family(ranges={"mass": [0.5, 2.0]})
        task = ours.sample_tasks(4, "train", numpy_rng(0, "tasks"))
        env = ours.make(task, 4, torch_rng(0, "env"))
        env.step(torch.zeros(4, 4, 6))
        child = os.fork()
        if not child:
            ours.advance(env.models, env.state, torch.zeros(4, 4, 6, dtype=torch.float64))
            os._exit(7)
        signal.alarm(30)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        signal.alarm(0)
    finally:
        torch.set_num_threads(1)


def test_a_body_that_explodes_is_a_warning_from_any_thread():
    ours = family(ranges={"damping": [1e20, 1e20]})
    env = ours.make(ours.named_task({"damping": 1e20}), 8, torch_rng(0, "env"))
    with pytest.warns(RuntimeWarning, match="MuJoCo: .*unstable") as seen:
        env.step(torch.ones(1, 8, 6))
    assert len(seen) < 8 * 5, "not one for each copy and simulated step"


def test_models_are_kept_and_bounded(monkeypatch):
    monkeypatch.setattr("metarl_cli.envs.mujoco.models.MOST", 2)
    ours = family(ranges={"mass": [0.5, 2.0]})
    first = ours.models.of({"mass": 0.5})
    assert ours.models.of({"mass": 0.5}) is first
    assert ours.models.of({"mass": 1.0}) is ours.models.nominal
    for factor in (0.6, 0.7):
        ours.models.of({"mass": factor})
    assert len(ours.models.kept) == 2
    assert ours.models.of({"mass": 0.5}) is not first


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"body": "horse"}, "half_cheetah"),
        ({"goal": "position"}, "a half_cheetah cannot turn"),
        ({"choices": {"angle": []}, "goal": "direction"}, "choices of angle must not be empty"),
        ({"choices": {"mass": [1.0]}, "ranges": {"mass": [1.0, 2.0]}}, "nor stand beside a range"),
        ({"ranges": {"mass": [0.0, 1.0]}}, "mass must be above 0"),
        ({"log_ranges": {"mass": [0.0, 1.0]}}, r"log range of mass must be \[low, high\]"),
        ({"log_ranges": {"mass": [0.5, 2.0]}, "ranges": {"mass": [1.0, 2.0]}}, "not stand beside a range"),
        ({"goal": "reach"}, "a half_cheetah cannot turn"),
    ],
)
def test_what_is_wrong_is_one_line(values, message):
    with pytest.raises((ValueError, ValidationError, ConfigError), match=message):
        family(**{"body": "half_cheetah", **values}) if values.get("body") != "horse" else bodies.Config.model_validate(
            {"body": "horse"}
        )


def test_without_mujoco_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("metarl_cli.envs.mujoco.models.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'gymnasium\[mujoco\]'"):
        family()


def test_every_body_has_a_family():
    assert {shipped(name).config.body for name in SHIPPED} == set(BODIES)

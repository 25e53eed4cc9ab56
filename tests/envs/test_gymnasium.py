"""Gymnasium's environments as families, against the environments themselves and against native physics."""

import gc
import itertools
import math
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from conftest import ENVS, compose_values, inherited, load, short
from launching import PATIENCE
from pydantic import ValidationError

from metarl_cli.envs import gymnasium as simulated
from metarl_cli.envs.gymnasium import build, workers
from metarl_cli.errors import EnvironmentFault, UserError
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Continuous, Discrete

EMPTY = {
    "constructor": {},
    "parameters": {},
    "choices": {},
    "ood_choices": {},
    "ranges": {},
    "ood_ranges": {},
    "derived": {},
    "wrappers": [],
    "processes": 1,
}
CARTPOLE = {
    "id": "CartPole-v1",
    "horizon": 50,
    "parameters": {
        "gravity": {"nominal": 9.8, "set": "attribute.gravity"},
        "masscart": {"nominal": 1.0, "set": "attribute.masscart"},
        "masspole": {"nominal": 1.0, "set": "scale.masspole"},
        "length": {"nominal": 0.5, "set": "attribute.length"},
        "force_mag": {"nominal": 10.0, "set": "attribute.force_mag"},
    },
    "ranges": {"gravity": [5.0, 20.0], "masspole": [0.5, 4.0], "length": [0.25, 1.5], "force_mag": [-15.0, 15.0]},
    "derived": {
        "total_mass": {"operation": "sum", "of": ["masscart", "masspole"]},
        "polemass_length": {"operation": "product", "of": ["masspole", "length"]},
    },
}
PENDULUM = {"id": "Pendulum-v1", "horizon": 40, "parameters": {"g": {"nominal": 10.0, "set": "constructor.g"}}}
PENDULUM["ranges"] = {"g": [5.0, 15.0]}
FAMILIES = {"cartpole": CARTPOLE, "pendulum": PENDULUM}


def config(values, **more):
    return simulated.Config.model_validate({**EMPTY, **values, **more})


def shipped(name, *overrides):
    """The configuration of a yaml; skips where its simulator is not installed."""
    module, parsed = load("env", compose_values("train", [f"env={name}", *overrides])["env"])
    if package := build.missing(parsed):
        pytest.skip(f"needs {package}")
    assert module is simulated
    return parsed


SHIPPED = [name for name in ENVS if inherited("env", name)["module"] == "gymnasium"]


def start(values, tasks=3, envs=2, seed=0, **more):
    family = simulated.Family(config(values, **more))
    return family, family.make(family.sample_tasks(tasks, "train", numpy_rng(0, "tasks")), envs, torch_rng(seed, "env"))


def play(family, env, steps, seed=0):
    rng = torch_rng(seed, "act")
    return [env.step(family.spec.actions.random(env.obs, rng)) for _ in range(steps)]


def equal(ours, theirs):
    return all(torch.equal(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


def inner(env):
    """The unwrapped environments, in order."""
    return [copy.env.unwrapped for copy in env.workers[0].simulators.envs]


def test_cartpole_by_attributes_equals_the_native_one(float64):
    """Step for step from the same states; total_mass and polemass_length are stale unless derived anew."""
    family, env = start(CARTPOLE, tasks=6)
    native = load("env", compose_values("train", ["env=cartpole_v1", "env.horizon=50"])["env"])
    task = family.sample_tasks(6, "train", numpy_rng(0, "tasks"))
    task["masspole"] = 0.1 * task["masspole"]
    other = native[0].Family(native[1]).make(task, 2, torch_rng(0, "env"))
    rng, seen = torch_rng(0, "act"), {"terminated": 0, "truncated": 0}
    for _ in range(300):
        other.state = torch.as_tensor(np.stack([sim.state for sim in inner(env)])).reshape(6, 2, 4)
        # push under the fall in every other environment, so that both ways to end are seen
        push = ((other.state[..., 2] + 0.5 * other.state[..., 3] > 0) == (task["force_mag"][:, None] > 0)).long()
        action = torch.where(torch.tensor([True, False]), push, torch.randint(2, (6, 2), generator=rng))
        ours, theirs = env.step(action), other.step(action)
        np.testing.assert_allclose(ours.next_obs, theirs.next_obs, rtol=1e-6, atol=1e-7)  # Gymnasium shows float32
        assert torch.equal(ours.reward, theirs.reward)
        assert torch.equal(ours.terminated, theirs.terminated)
        assert torch.equal(ours.truncated, theirs.truncated)
        running = ~ours.ended
        now = torch.as_tensor(np.stack([sim.state for sim in inner(env)])).reshape(6, 2, 4)
        np.testing.assert_allclose(now[running], theirs.obs[running], rtol=0, atol=2e-15)
        seen = {name: count + int(getattr(ours, name).sum()) for name, count in seen.items()}
    assert min(seen.values()) > 0, "both ways to end were compared"


def test_the_last_observation_of_an_episode_is_the_true_one():
    family, env = start(CARTPOLE)
    ends = 0
    for step in play(family, env, 200):
        ended = step.ended
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        assert bool((step.obs[ended].abs() <= 0.05).all()), "a fresh episode"
        beyond = (step.next_obs[..., 0].abs() > 2.4) | (step.next_obs[..., 2].abs() > math.radians(12))
        assert torch.equal(beyond, step.terminated)
        ends += int(ended.sum())
    assert ends > 10


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_state_goes_on_with_the_same_bits(name, processes):
    family, env = start(FAMILIES[name], processes=processes)
    play(family, env, 55)
    saved = {key: value.clone() for key, value in env.state_dict().items()}
    assert int(saved["episodes"].max()) > 0
    assert len(saved["actions"]) == int(saved["clock"].max()) > 0
    expected = play(family, env, 60, seed=1)
    other_family, other = start(FAMILIES[name], processes=processes, seed=9)
    assert not torch.equal(other.obs, saved["obs"])
    other.load_state_dict(saved)
    assert torch.equal(other.obs, saved["obs"])
    assert equal(expected, play(other_family, other, 60, seed=1))


@pytest.mark.parametrize("name", FAMILIES)
def test_processes_change_nothing(name):
    runs = [play(*start(FAMILIES[name], tasks=5, envs=1, processes=p), 60) for p in (1, 2, 3)]
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


def test_processes_end_with_the_family():
    family, env = start(CARTPOLE, processes=2)
    processes = [worker.process for worker in env.workers]
    play(family, env, 3)
    assert len(processes) == 2
    del env
    gc.collect()
    assert all(p.is_alive() for p in processes), "they wait for more"
    del family
    gc.collect()
    assert not any(p.is_alive() for p in processes)


@pytest.mark.parametrize("name", SHIPPED)
def test_simulators_are_used_again_and_remember_nothing(name):
    family = simulated.Family(shipped(name, "env.horizon=20"))
    task = family.sample_tasks(2, "train", numpy_rng(0, "tasks"))
    env = family.make(task, 1, torch_rng(0, "env"))
    expected, built = play(family, env, 30), env.workers[0]
    beside = family.make(task, 1, torch_rng(0, "env"))
    assert beside.workers[0] is not built, "one that is in use is not"
    del env
    gc.collect()
    again = family.make(task, 1, torch_rng(0, "env"))
    assert again.workers[0] is built
    assert equal(expected, play(family, again, 30))


def test_few_simulators_wait():
    family = simulated.Family(config(CARTPOLE, idle=5))
    tasks = [family.sample_tasks(2, "train", numpy_rng(seed, "tasks")) for seed in range(3)]
    for task in tasks:
        family.make(task, 1, torch_rng(0, "env"))
        gc.collect()
    assert sum(family.pool.copies.values()) == 4


def test_an_error_elsewhere_is_told_here():
    task = simulated.Family(config(CARTPOLE)).named_task({})
    family = simulated.Family(config(CARTPOLE, processes=2))
    env = family.make({name: value.expand(2) for name, value in task.items()}, 1, torch_rng(0, "env"))
    with pytest.raises(EnvironmentFault, match=r"env.id=CartPole-v1: step raised AssertionError: 7 .* invalid") as caught:
        env.step(torch.full((2, 1), 7))
    assert "cartpole.py" in caught.value.__notes__[0], "for whoever asks for the traceback"


def test_a_simulator_that_ends_its_process_is_told_of():
    env = start(CARTPOLE, processes=2)[1]
    env.workers[0].process.kill()
    env.workers[0].process.join()
    with pytest.raises(EnvironmentFault, match=r"env.id=CartPole-v1: it ended its process \(signal SIGKILL\)"):
        env.step(torch.zeros(3, 2, dtype=torch.long))


def test_a_simulator_that_does_not_repeat_itself_is_told_of():
    family, env = start(CARTPOLE)
    play(family, env, 5)
    saved = env.state_dict()
    saved["obs"] = saved["obs"] + 1
    with pytest.warns(UserWarning, match="CartPole-v1 is not deterministic"):
        env.load_state_dict(saved)
    assert torch.equal(env.episodes, saved["episodes"] + 1)
    assert int(env.clock.max()) == 0
    assert bool((env.obs.abs() <= 0.05).all())
    play(family, env, 60)


def test_a_state_of_another_shape_is_refused():
    saved = start(CARTPOLE)[1].state_dict()
    with pytest.raises(ValueError, match="another shape"):
        start(CARTPOLE, tasks=2)[1].load_state_dict(saved)


def test_the_seed_decides():
    runs = [play(*start(PENDULUM, seed=s), 50) for s in (0, 0, 1)]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])
    first = start(PENDULUM)[1].obs.flatten(0, 1)
    assert len({tuple(row) for row in first.tolist()}) == 6, "every environment has its own seed"


def test_spaces_become_a_spec(float64):
    family, env = start(PENDULUM)
    assert family.spec.actions == Continuous((-2.0,), (2.0,))
    assert env.obs.dtype == torch.float64
    lake = simulated.Family(config({"id": "FrozenLake-v1", **LUCK}))
    assert lake.spec.obs_shape == (16,)
    assert lake.make(lake.named_task({}), 1, torch_rng(0, "e")).obs.sum() == 1


LUCK = {"horizon": 9, "parameters": {"luck": {"nominal": 0.5, "set": "constructor.success_rate"}}}


def wrap(name, **arguments):
    return {"name": name, "arguments": arguments}


def parameter(address):
    return {"parameters": {"p": {"nominal": 1.0, "set": address}}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": "CartPole-v7"}, "no such Gymnasium environment: CartPole-v7; did you mean CartPole-v0 or CartPole-v1"),
        ({"id": "antigravity:Room-v7"}, "antigravity is not imported because a configuration names it; where you trust it"),
        ({"id": "a:CartPole-v1", "package": "b"}, "id names the package a, and package is b"),
        ({"constructor": {"gravty": 1}}, "CartPole-v1 cannot be built from .*gravty"),
        ({"constructor": {"render_mode": "human"}}, "constructor.render_mode cannot be set by a configuration"),
        (parameter("attribute.gravty"), "the environment has no attribute gravty; did you mean gravity"),
        (parameter("attribute.__class__"), "attribute __class__ is not public"),
        (parameter("attribute.np_random._bit_generator"), "is not public"),
        (parameter("attribute.state"), "attribute state is not a number"),
        (parameter("attribute.step"), "attribute step is not a number"),
        (parameter("scale.action_space.low.3"), "no attribute action_space.low.3"),
        (parameter("attribute.observation_space.low"), "attribute observation_space.low is an array: name one entry"),
        (parameter("import.os"), "should match pattern"),
        (parameter("wrapper.ClipReward.max_reward"), "ClipReward must be one of wrappers"),
        ({"derived": {"total_mas": {"operation": "sum", "of": ["masscart"]}}}, "no attribute total_mas; did you mean"),
        ({"derived": {"x": {"operation": "sum", "of": ["_a"]}}}, "attribute _a is not public"),
        ({"wrappers": [wrap("RecordVideo", video_folder="x")]}, "no such wrapper: RecordVideo"),
        ({"wrappers": [wrap("FlattenObservations")]}, "no such wrapper: FlattenObservations; did you mean FlattenObservation"),
        ({"wrappers": [wrap("ClipReward", most=1.0)]}, "wrapper ClipReward cannot be built from .*most"),
        ({"wrappers": [wrap("HiddenGoal", x=1, y=1)]}, "wrapper HiddenGoal cannot be built .*FourRooms"),
        ({"ranges": {"gravity": [0.0, 1.0]}}, "no such task parameter: gravity"),
        ({"choices": {"gravity": [1.0]}}, "no such task parameter"),
        ({**parameter("attribute.gravity"), "choices": {"p": [1.0]}, "ranges": {"p": [0.0, 1.0]}}, "both a range and choices"),
        ({**parameter("attribute.gravity"), "ood_choices": {"p": [1.0]}}, "must be other values than its choices"),
        ({**parameter("scale.gravity"), "ranges": {"p": [0.0, 1.0]}}, "p must be above 0"),
    ],
)
def test_what_is_wrong_is_told_in_words(values, message):
    with pytest.raises((ValueError, ValidationError), match=message):
        simulated.Family(config({"id": "CartPole-v1", "horizon": 20, **parameter("attribute.length"), **values}))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("HalfCheetah-v5", r"gymnasium\[mujoco\]"),
        ("LunarLander-v3", r"gymnasium\[box2d\]"),
        ("MiniGrid-Empty-5x5-v0", "minigrid"),
        ("ALE/Pong-v5", "ale-py"),
    ],
)
def test_a_missing_simulator_is_named(name, package, monkeypatch):
    """By the package of whoever makes it: the name of this project is not its own in the registry."""
    monkeypatch.setattr(build, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf"{name} needs .*: pip install '{package}'"):
        simulated.Family(config({"id": name, **LUCK}))
    assert build.missing(config({"id": name, **LUCK})) == package.replace("\\", "")


def test_choices_are_shared_by_the_splits_and_others_are_held_out():
    values = {**parameter("attribute.gravity"), "choices": {"p": [5.0, 10.0]}, "ood_choices": {"p": [20.0, 2.5]}}
    family = simulated.Family(config({"id": "CartPole-v1", "horizon": 20, **values}))
    assert family.finite
    assert family.splits == ("train", "validation", "test", "ood")
    drawn = {split: family.sample_tasks(60, split, numpy_rng(0, "tasks", split))["p"].tolist() for split in family.splits}
    assert [set(drawn[split]) for split in family.splits] == [{5.0, 10.0}] * 3 + [{2.5, 20.0}]
    assert family.sample_tasks(7, "ood", numpy_rng(0, "tasks", "ood"))["p"].tolist() == drawn["ood"][:7]
    assert float(family.named_task({"p": 20.0})["p"]) == 20
    with pytest.raises(ValueError, match=r"p must be one of 5.0, 10.0, 20.0, 2.5, got 3"):
        family.named_task({"p": 3.0})
    assert not simulated.Family(config(CARTPOLE)).finite


def test_a_task_that_the_simulator_refuses_is_told_in_words():
    family = simulated.Family(shipped("lunar_lander_family"))
    with pytest.raises(ValueError, match="LunarLander-v3 cannot be built"):
        family.named_task({"gravity": 5.0})


# -- the literature's rewards


def runner(name, weight, goal, key, value):
    """A body of MuJoCo whose reward a wrapper of this package replaces."""
    pytest.importorskip("mujoco")
    parameters = {key: {"nominal": value, "set": f"wrapper.{goal}.{key}"}}
    values = {"id": name, "horizon": 200, "constructor": {"ctrl_cost_weight": weight}, "parameters": parameters}
    return simulated.Family(config({**values, "wrappers": [wrap(goal)]}))


@pytest.mark.parametrize(
    ("name", "weight", "goal", "key", "value"),
    [
        ("HalfCheetah-v5", 0.05, "Direction", "angle", math.pi),
        ("HalfCheetah-v5", 0.05, "Velocity", "velocity", 2.5),
        ("Ant-v5", 0.5, "Direction", "angle", 1.0),
    ],
)
def test_locomotion_rewards_by_hand(name, weight, goal, key, value, float64):
    """From the body's own positions: velocity over the step's time, and the papers' costs."""
    family = runner(name, weight, goal, key, value)
    env = family.make(family.named_task({}), 1, torch_rng(0, "env"))
    (sim,), rng = inner(env), torch_rng(0, "act")
    body = 1 if name == "Ant-v5" else None
    for _ in range(20):
        before = sim.data.xpos[body, :2].copy() if body else np.array([sim.data.qpos[0], 0.0])
        action = family.spec.actions.random(env.obs, rng)
        step = env.step(action)
        after = sim.data.xpos[body, :2].copy() if body else np.array([sim.data.qpos[0], 0.0])
        x, y = (after - before) / sim.dt
        expected = -weight * float(action.square().sum())
        if value == math.pi:
            expected += -x
        elif goal == "Velocity":
            expected += -abs(x - 2.5)
        else:
            contact = 5e-4 * float(np.square(np.clip(sim.data.cfrc_ext, -1, 1)).sum())
            expected += math.cos(1.0) * x + math.sin(1.0) * y + 1.0 - contact
        assert float(step.reward) == pytest.approx(expected, abs=1e-6)
        assert not step.terminated


def test_mujoco_constants_follow_the_model():
    pytest.importorskip("mujoco")
    scale = {"nominal": 1.0, "set": "scale.model.body_mass"}
    gravity = {"nominal": -9.81, "set": "attribute.model.opt.gravity.2"}
    values = {"id": "HalfCheetah-v5", "horizon": 20, "parameters": {"mass": scale, "g": gravity}}
    family = simulated.Family(config(values))
    models = [inner(family.make(family.named_task({"mass": m, "g": -3.0}), 1, torch_rng(0, "e")))[0].model for m in (1.0, 2.0)]
    assert np.allclose(models[1].body_mass, 2 * models[0].body_mass)
    assert np.allclose(models[1].body_subtreemass, 2 * models[0].body_subtreemass)
    assert models[0].body_subtreemass[0] == pytest.approx(models[0].body_mass.sum())
    assert models[0].opt.gravity.tolist() == [0, 0, -3]


# -- MiniGrid and Atari


def test_a_hidden_goal_stays_where_the_task_says():
    family = simulated.Family(shipped("minigrid_four_rooms"))
    env = family.make(family.named_task({"goal_x": 3.0, "goal_y": 15.0}), 1, torch_rng(0, "env"))
    seen = set()
    for _ in range(5):
        (sim,) = inner(env)
        assert sim.grid.get(3, 15).type == "goal"
        assert sum(thing is not None and thing.type == "goal" for thing in sim.grid.grid) == 1
        seen.add(tuple(sim.agent_pos))
        play(family, env, 100)
    assert len(seen) > 1, "the start is drawn anew"
    assert bool((env.obs.sum((2,))[..., 3, 6] == 3).all()), "one kind, one colour and one state per cell"


def test_permuted_actions_by_hand():
    family = simulated.Family(shipped("minigrid_actions"))
    assert family.spec.actions == Discrete(3)
    for order, wires in enumerate(itertools.permutations(range(3))):
        for action in range(3):
            env = family.make(family.named_task({"order": order}), 1, torch_rng(0, "env"))
            other = family.make(family.named_task({"order": 0}), 1, torch_rng(0, "env"))
            step = env.step(torch.tensor([[action]]))
            assert torch.equal(step.obs, other.step(torch.tensor([[wires[action]]])).obs)


def test_atari_flavours_are_pixels():
    family = simulated.Family(shipped("atari_flavours", "env.horizon=30"))
    assert family.spec.obs_shape == (4, 84, 84)
    env = family.make(family.named_task({"mode": 3.0, "difficulty": 1.0}), 1, torch_rng(0, "env"))
    (sim,) = inner(env)
    assert (sim._game_mode, sim._game_difficulty) == (3, 1)
    assert env.obs.dtype == torch.uint8
    steps = play(family, env, 30)
    assert bool(steps[-1].truncated), "the horizon counts the agent's steps, not frames"
    assert torch.equal(steps[5].next_obs[0, 0, 1:], steps[6].next_obs[0, 0, :3]), "frames are stacked, the newest last"
    learner, values = load("learner", compose_values("train", ["learner=dqn_atari"])["learner"])
    learner = learner.Learner(values, family.spec)
    params = {name: value[None] for name, value in learner.init(torch_rng(0, "init")).items()}
    assert learner.policy(params, env.obs).mode().shape == (1, 1)
    ood = family.sample_tasks(20, "ood", numpy_rng(0, "tasks"))
    assert set(ood["mode"].tolist()) <= {4.0, 5.0, 6.0, 7.0}


# -- every yaml


@pytest.mark.parametrize("name", SHIPPED)
def test_every_yaml_builds_steps_and_goes_on(name):
    family = simulated.Family(shipped(name))
    tasks = family.sample_tasks(2, "train", numpy_rng(0, "tasks"))
    env = family.make(tasks, 2, torch_rng(0, "env"))
    play(family, env, 30)
    saved = env.state_dict()
    first = play(family, env, 30, seed=1)
    other = family.make(tasks, 2, torch_rng(1, "env"))
    other.load_state_dict(saved)
    assert equal(first, play(family, other, 30, seed=1))
    assert all(bool(torch.isfinite(step.reward).all()) for step in first)
    for name, value in family.named_task({}).items():
        assert float(value) == pytest.approx(family.parameters[name])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_yaml_can_be_drawn(name):
    pytest.importorskip("pygame")
    family = simulated.Family(shipped(name))
    env = family.make(family.named_task({}), 1, torch_rng(0, "env"), render=True)
    try:
        image = env.render()
    except UserError as error:
        if "mujoco" not in str(gymnasium.spec(family.config.id).entry_point):
            raise
        pytest.skip(str(error))  # it draws with OpenGL, which not every machine has
    assert image.mode == "RGB"
    assert len(image.getcolors(maxcolors=100_000)) > 1


def test_what_was_not_asked_for_cannot_be_drawn():
    family, env = start(CARTPOLE)
    with pytest.raises(UserError, match="CartPole-v1 cannot be drawn"):
        env.render()
    assert family.optimum(family.named_task({})) is None


def test_few_tasks_all_come_up_before_one_comes_again():
    few = {"force": [5.0, 10.0, 20.0], "gravity": [5.0, 10.0]}
    places = {"force": "attribute.force_mag", "gravity": "attribute.gravity"}
    parameters = {name: {"nominal": 10.0, "set": place} for name, place in places.items()}
    family = simulated.Family(config({"id": "CartPole-v1", "horizon": 20, "parameters": parameters, "choices": few}))
    tasks = family.sample_tasks(14, "train", numpy_rng(0, "tasks"))
    rows = list(zip(tasks["force"].tolist(), tasks["gravity"].tolist(), strict=True))
    assert len(set(rows[:6])) == len(set(rows[6:12])) == 6
    assert rows[:6] != rows[6:12], "in another order"


@pytest.mark.parametrize("number", workers.SIGNALS)
def test_signals_are_for_the_process_that_saves(number):
    """A scheduler signals every process of a job; the simulators must outlive what asks them to save."""
    family, env = start(CARTPOLE, processes=2)
    for worker in env.workers:
        os.kill(worker.process.pid, number)
    assert len(play(family, env, 5)) == 5


def test_a_program_ends_though_its_simulators_ignore_signals(tmp_path):
    program = """
import torch
from metarl_cli.envs import gymnasium as simulated
from metarl_cli.seeding import numpy_rng, torch_rng
family = simulated.Family(simulated.Config.model_validate(VALUES))
env = family.make(family.sample_tasks(2, "train", numpy_rng(0, "tasks")), 2, torch_rng(0, "env"))
print("made", flush=True)
"""
    values = config(CARTPOLE, processes=2).model_dump(by_alias=True)
    path = tmp_path / "program.py"
    path.write_text(program.replace("VALUES", repr(values)))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr


def test_what_the_simulator_refuses_at_the_end_of_a_range_is_told_at_once():
    pytest.importorskip("Box2D")
    with pytest.raises(ValueError, match="LunarLander-v3 cannot be built"):
        simulated.Family(shipped("lunar_lander_family", "env.ood_ranges.gravity=[-20.0,-1.0]"))


@pytest.mark.parametrize(("place", "made"), [("wrapper.Velocity.velocity", 1), ("attribute.g", 2)])
def test_what_was_tried_is_closed_where_it_is_refused(place, made, monkeypatch):
    """The nominal environment, and that at the end of a range."""
    closed = []
    monkeypatch.setattr("gymnasium.envs.classic_control.pendulum.PendulumEnv.close", lambda env: closed.append(env))
    monkeypatch.setattr("metarl_cli.envs.gymnasium.trial._check_spaces", lambda *_: 1 / 0)
    wrappers = [{"name": "Velocity", "arguments": {}}] if "Velocity" in place else []
    parameters = {"g": {"nominal": 10.0, "set": place}}
    values = {"id": "Pendulum-v1", "horizon": 20, "parameters": parameters, "wrappers": wrappers, "ranges": {"g": [5, 15]}}
    with pytest.raises((ValueError, ZeroDivisionError)):
        simulated.Family(config(values))
    assert len(closed) == made


def test_returns_that_solve_a_task_lie_where_the_tasks_do():
    family = simulated.Family(config({"id": "CartPole-v1", "horizon": 500}), "meta")
    solved = family.solved({"task": torch.zeros(3, device="meta")})
    assert solved.shape == (3,)
    assert solved.device.type == "meta"


def test_a_wrapper_that_misses_something_says_so():
    wrappers = [{"name": "Velocity", "arguments": {}}]
    place = {"velocity": {"nominal": 1.0, "set": "wrapper.Velocity.velocity"}}
    values = config({"id": "Pendulum-v1", "horizon": 20, "parameters": place, "wrappers": wrappers})
    with pytest.raises(ValueError, match="Pendulum-v1 does not report 'x_velocity'"):
        simulated.Family(values)


def test_actions_beyond_the_bounds_are_clipped():
    """A Gaussian policy samples any number; the simulator, its control cost included, sees the bound."""
    pytest.importorskip("mujoco")
    ours = short("half_cheetah_dir")
    beyond, at_the_bound = (ours.make(ours.named_task({}), 1, torch_rng(0, "env")) for _ in range(2))
    action = torch.full((1, 1, ours.spec.actions.size), 3.0)
    one, other = beyond.step(action), at_the_bound.step(action.clamp(max=1.0))
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.next_obs, other.next_obs)

"""Every family of ``conf/env``: what all of them promise; CartPole and 2D navigation against known answers."""

import io

import gymnasium
import numpy as np
import pytest
import torch
from conftest import (
    ENVS,
    KINDS,
    TINY,
    TINY_MAML,
    compose_train,
    compose_values,
    inherited,
    load,
    short,
    slow_if,
)

from metarl_cli.envs.native import FEW
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.interfaces import Budget, Context
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng
from metarl_cli.spaces import Continuous


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def play(env, spec, rng, steps=45, repeat=1):
    """Random actions, each taken ``repeat`` times; every field ``[T, M, N, ...]``."""
    found = []
    for t in range(steps):
        if t % repeat == 0:
            action = spec.actions.random(env.obs, rng)
        found.append(env.step(action))
    return [torch.stack(field) for field in zip(*found, strict=True)]


def same(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def rows_of(tasks):
    """Each task as one tuple of numbers."""
    return [tuple(r) for r in torch.cat([v.reshape(len(v), -1) for v in tasks.values()], 1).tolist()]


@pytest.mark.parametrize("name", ENVS)
def test_shapes_bounds_clock_and_true_successor(name):
    ours = short(name)
    spec = ours.spec
    actions = spec.actions
    tasks = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    env = ours.make(tasks, 2, torch_rng(0, "env"))
    rng, clock = torch_rng(0, "act"), torch.zeros(3, 2, dtype=torch.long)
    assert env.obs.dtype in (torch.float32, torch.uint8)
    for _ in range(45):
        before = env.obs
        action, legal = actions.random(before, rng), actions.legal(before)
        if isinstance(actions, Continuous):
            low, high = actions.bounds(action.device)
            assert action.shape == (3, 2, len(low))
            assert ((action >= low) & (action <= high)).all()
        else:
            assert action.shape == (3, 2)
            assert ((action >= 0) & (action < actions.n)).all()
        assert actions.encode(action).shape == (3, 2, actions.size)
        assert (legal is not None) == getattr(actions, "masked", False)
        if legal is not None:
            assert legal.gather(-1, action[..., None]).all(), "random actions are legal"
        step = env.step(action)
        clock += 1
        assert step.next_obs.shape == step.obs.shape == (3, 2, *spec.obs_shape)
        assert step.next_obs.dtype == step.obs.dtype == before.dtype
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (3, 2)
        assert step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == torch.bool
        assert torch.isfinite(step.next_obs.float()).all()
        assert torch.isfinite(step.reward).all()
        assert torch.equal(step.truncated & ~step.terminated, (clock == min(spec.horizon, 20)) & ~step.terminated)
        ended = step.ended
        assert torch.equal(ended, step.terminated | step.truncated)
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        assert torch.equal(step.obs, env.obs)
        clock[ended] = 0


@pytest.mark.parametrize("name", ENVS)
def test_what_was_returned_is_never_changed(name):
    ours = short(name)
    env = ours.make(ours.sample_tasks(2, "train", numpy_rng(0, "tasks")), 2, torch_rng(0, "env"))
    step = env.step(ours.spec.actions.random(env.obs, torch_rng(0, "act")))
    kept = [field.clone() for field in step]
    play(env, ours.spec, torch_rng(1, "act"), steps=5)
    assert same(kept, step)


@pytest.mark.parametrize("name", ENVS)
def test_state_round_trip_goes_on_with_the_same_bits(name):
    ours = short(name)
    tasks = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    env = ours.make(tasks, 2, torch_rng(0, "env"))
    play(env, ours.spec, torch_rng(0, "act"), steps=33)
    saved = copied(env.state_dict())
    first = play(env, ours.spec, torch_rng(1, "act"))
    other = ours.make(tasks, 2, torch_rng(9, "env"))
    other.load_state_dict(saved)
    assert same(first, play(other, ours.spec, torch_rng(1, "act")))


def copied(state):
    """The state as a checkpoint would give it back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("num_envs", [2, FEW])
def test_episodes_begin_where_one_ended_and_nowhere_else(num_envs):
    """With few environments, and with so many that starts are drawn for those alone whose episode ended."""
    ours = family("cartpole_family", "env.horizon=15")
    task = ours.sample_tasks(2, "train", numpy_rng(0, "tasks"))
    env = ours.make(task, num_envs, torch_rng(0, "env"))
    constants = ours.constants({name: value[:, None] for name, value in task.items()})
    rng, clock, seen = torch_rng(0, "act"), torch.zeros(2, num_envs), 0
    for _ in range(50):
        before, drawn = env.state, env.rng.get_state()
        action = ours.spec.actions.random(env.obs, rng)
        step = env.step(action)
        after, reward, terminated = ours.dynamics(before, action, constants, rng)
        clock += 1
        assert same([step.next_obs, step.reward, step.terminated], [after, reward, terminated])
        assert torch.equal(step.truncated, clock == 15)
        ended = step.ended
        assert torch.equal(step.obs[~ended], after[~ended])
        assert (step.obs[ended].abs() <= 0.05).all()
        assert len(step.obs[ended].unique(dim=0)) == int(ended.sum()), "each start is drawn"
        assert torch.equal(drawn, env.rng.get_state()) == (not ended.any())
        clock[ended] = 0
        assert torch.equal(env.clock, clock.long())
        seen += int(step.truncated.sum()) > 0
    assert seen > 0


def test_a_state_saved_by_steps_since_the_start_is_continued():
    """What was saved is the state and the clock of each episode, so the time limits hold after loading."""
    ours = family("cartpole_v1", "env.horizon=9")
    task = ours.sample_tasks(2, "train", numpy_rng(0, "tasks"))
    env = ours.make(task, 3, torch_rng(0, "env"))
    clock = torch.tensor([[0, 3, 8], [7, 8, 1]])
    env.load_state_dict({"state": torch.zeros(2, 3, 4), "clock": clock, "rng": env.rng.get_state()})
    assert env.step(torch.zeros(2, 3, dtype=torch.long)).truncated.tolist() == [[False, False, True], [False, True, False]]
    assert env.clock.tolist() == [[1, 4, 0], [8, 0, 2]]
    assert env.state_dict()["clock"].tolist() == env.clock.tolist()


@pytest.mark.parametrize("name", ["cartpole_v1", "pendulum_v1", "gridworld"])
def test_gradients_can_be_taken_of_what_a_step_returns(name):
    """A step itself is not differentiated, but what it returns can be learned from without a copy."""
    ours = family(name)
    env = ours.make(ours.sample_tasks(2, "train", numpy_rng(0, "tasks")), 3, torch_rng(0, "env"))
    env.step(ours.spec.actions.random(env.obs, torch_rng(0, "act")))
    weight = torch.ones(env.obs.shape[-1], requires_grad=True)
    (env.obs * weight).sum().backward()
    torch.testing.assert_close(weight.grad, env.obs.sum((0, 1)))
    assert (weight * 2).requires_grad, "nothing stays switched off"


@pytest.mark.parametrize("num_envs", [2, FEW])
def test_one_episode_draws_no_other(num_envs):
    """The first episode of each environment is the same; after it, nothing is drawn."""
    ours = family("cartpole_family")
    task = ours.sample_tasks(4, "train", numpy_rng(0, "tasks"))
    env, once = (ours.make(task, num_envs, torch_rng(0, "env")) for _ in range(2))
    once.one_episode()
    drawn, rng, rows = once.rng.get_state(), torch_rng(0, "act"), torch.tensor([True, False, True, True])
    running = torch.ones(4, num_envs, dtype=torch.bool)
    for t in range(60):
        if t == 10:
            for e in (env, once):
                e.select_rows(rows)
            running = running[rows]
        assert torch.equal(env.obs[running], once.obs[running])
        action = ours.spec.actions.random(env.obs, rng)
        step, other = env.step(action), once.step(action)
        for field, same_field in zip(step[:4], other[:4], strict=True):
            assert torch.equal(field[running], same_field[running])
        running &= ~step.ended
    assert not running.all()
    assert torch.equal(drawn, once.rng.get_state())


@pytest.mark.parametrize("name", [name for name in KINDS if inherited("env", name)["module"] not in ("gymnasium", "mix")])
def test_what_derives_from_a_task_is_computed_once(name, monkeypatch):
    """Once for an environment, and again when tasks are dropped; the columns of the state stay contiguous."""
    ours, calls = short(name), []
    constants = ours.constants
    monkeypatch.setattr(ours, "constants", lambda task: calls.append(0) or constants(task))
    env = ours.make(ours.sample_tasks(3, "train", numpy_rng(0, "tasks")), 4, torch_rng(0, "env"))
    play(env, ours.spec, torch_rng(0, "act"), steps=5)
    assert len(calls) == 1
    env.select_rows(torch.tensor([True, False, True]))
    for _ in range(30):
        env.step(ours.spec.actions.random(env.obs, torch_rng(0, "act")))
        assert env.state.movedim(-1, 0).is_contiguous()
    assert len(calls) == 2


@pytest.mark.parametrize("name", ENVS)
def test_same_seed_same_episodes_other_seed_other(name):
    ours = short(name)
    tasks = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    runs = [play(ours.make(tasks, 2, torch_rng(s, "env")), ours.spec, torch_rng(s, "act")) for s in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("name", ENVS)
def test_tasks_of_the_splits(name):
    ours = short(name)
    assert ours.splits[:3] == ("train", "validation", "test")
    drawn = {s: ours.sample_tasks(50, s, numpy_rng(0, "tasks", s)) for s in ours.splits}
    for split, tasks in drawn.items():
        fewer = ours.sample_tasks(7, split, numpy_rng(0, "tasks", split))
        assert all(torch.equal(fewer[k], tasks[k][:7]) for k in tasks), "the first tasks do not depend on the number"
    if not ours.finite:
        seen = {split: set(rows_of(tasks)) for split, tasks in drawn.items()}
        assert sum(map(len, seen.values())) == len(set.union(*seen.values())), "splits share no task"
    with pytest.raises(ValueError, match="no split"):
        ours.sample_tasks(1, "nope", numpy_rng(0, "t"))


@pytest.mark.parametrize("name", [name for name in ENVS if inherited("env", name).get("ranges")])
def test_tasks_lie_within_their_ranges(name):
    ours, ranges = short(name), compose_values("train", [f"env={name}"])["env"]["ranges"]
    for split in ours.splits[:3]:
        tasks = ours.sample_tasks(50, split, numpy_rng(0, "tasks", split))
        for key, (low, high) in ranges.items():
            value = tasks.get(key)
            if value is not None:  # a reversed actuator is the negative of what its range says
                assert bool(((value >= low - 1e-6) | (-value >= low - 1e-6)).all())
                assert float(value.abs().max()) <= max(abs(low), abs(high)) + 1e-6
    if "ood" in ours.splits:
        tasks = ours.sample_tasks(50, "ood", numpy_rng(0, "tasks", "ood"))
        assert ours.outside({k: v.double().numpy() for k, v in tasks.items()}).all()


@pytest.mark.parametrize("name", ENVS)
def test_every_task_parameter_matters(name):
    """Two tasks that differ in one parameter alone behave differently, for every parameter that varies."""
    ours = short(name, native=False)
    native = (hasattr(ours, "dynamics") or hasattr(ours, "families")) and not hasattr(ours, "models_of")
    copies, steps = (8, 200) if native else (1, 60)  # simulators are slow
    tasks = ours.sample_tasks(12, "train", numpy_rng(0, "tasks"))
    for key, value in tasks.items():
        mine = list(range(12))
        if "." in key:  # of a family in a mix, and so of its tasks alone
            number = list(ours.families).index(key.split(".")[0])
            mine = [row for row in mine if tasks["family"][row] == number]
        first, *rest = mine
        others = [row for row in rest if not torch.equal(value[row], value[first])][: 11 if native else 2]
        if not others:
            continue
        base = {k: v[[first] * len(others)] for k, v in tasks.items()}
        changed = {**base, key: value[others]}
        ones, twos = (
            play(ours.make(t, copies, torch_rng(0, "env")), ours.spec, torch_rng(0, "act"), steps=steps, repeat=20)
            for t in (base, changed)
        )
        assert not same(ones, twos), f"{key} changes nothing"


@pytest.mark.parametrize("name", [name for name in ENVS if inherited("env", name)["module"] != "gymnasium"])
def test_renders_a_frame(name):
    """Simulators are drawn in test_gymnasium.py."""
    ours = short(name)
    env = ours.make(ours.named_task({}), 1, torch_rng(0, "env"), render=True)
    image = env.render()
    assert image.mode == "RGB"
    assert len(image.getcolors(maxcolors=1_000_000)) > 1, "something is drawn"


@pytest.mark.parametrize("name", ENVS)
def test_random_actions_do_not_beat_the_optimum(name):
    ours = short(name)
    tasks = ours.sample_tasks(20, "test", numpy_rng(0, "tasks"))
    best = ours.optimum(tasks)
    if best is None:
        pytest.skip("the optimum is not known")
    assert best.shape == (20,)
    env = ours.make(tasks, 50, torch_rng(0, "env"))
    step = play(env, ours.spec, torch_rng(0, "act"), steps=ours.spec.horizon)
    ended = (step[2] | step[3]).cumsum(0) - (step[2] | step[3]).long()
    returns = (step[1] * (ended == 0)).sum(0)  # [M, N] of the first episode
    error = returns.std(1) / 50**0.5
    assert (returns.mean(1) <= best + 4 * error + 1e-5).all()


CARTPOLES = ["cartpole_family", "cartpole_physics", "cartpole_v1"]


@pytest.mark.parametrize("name", slow_if(CARTPOLES, lambda name: name != "cartpole_family"))
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


def test_physics_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="masscart must be above 0"):
        family("cartpole_family").named_task({"masscart": -0.1})


def test_named_task_refuses_an_unknown_parameter():
    with pytest.raises(ValueError, match="no such task parameter: gravty"):
        family("cartpole_family").named_task({"gravty": 9.0})


@pytest.mark.parametrize("name", slow_if(ENVS, lambda name: name not in KINDS))
def test_maml_dqn_runs_on_every_family(name):
    """One meta-iteration and one adaptation, whatever the observations and actions are."""
    ours = short(name)
    image = len(ours.spec.obs_shape) == 3 and ours.spec.obs_shape[0] <= 4
    small = [{"channels": 2, "kernel": 8, "stride": 8}] if image and min(ours.spec.obs_shape[1:]) > 16 else []
    tiny = [o for o in TINY if o != "train.iterations=4" and not o.startswith("env.")]
    config = compose_train("algo=maml_dqn", *tiny, *TINY_MAML)
    values = config.learner.values
    learner = {**values, "network": {**values["network"], "convolutions": small}}
    module, values = load("learner", learner)
    algo, chosen = load("algo", config.algo)
    algorithm = algo.Algo(chosen, Context(ours, module.Learner(values, ours.spec), 4, 0, torch.device("cpu")))
    assert all(np.isfinite(v) for v in algorithm.train_step().values())
    tasks = ours.sample_tasks(2, "test", numpy_rng(0, "tasks", "test"))
    curve = Evaluator(ours, tasks, 1, 0, "test").curve(algorithm, Budget(1))
    assert np.isfinite(curve.returns).all()
    assert curve.env_steps[1] > 0


def test_dynamics_that_draw_must_say_so():
    """Where copies of a task are dealt common numbers, a draw that no one is told of would not be common."""

    module, config = load("env", compose_train("env=cartpole_family").env)

    class Windy(module.Family):
        def dynamics(self, state, action, task, rng):
            state, reward, terminated = super().dynamics(state, action, task, rng)
            return state + torch.randn(state.shape, generator=rng) / 100, reward, terminated

    class Honest(Windy):
        stochastic = True

    def play_copies(kind):
        ours = kind(config)
        task = {k: v.repeat(2) for k, v in ours.sample_tasks(3, "train", numpy_rng(0, "tasks")).items()}
        with CommonRandomNumbers(2):
            env = ours.make(task, 4, torch_rng(0, "env"))
            return env.step(torch.zeros(6, 4, dtype=torch.long)).next_obs

    one, other = play_copies(Honest).chunk(2)
    assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="the dynamics of Windy draw random numbers: set stochastic = True in the class"):
        play_copies(Windy)

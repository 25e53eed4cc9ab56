"""Environments that break: one line at once, with the environment's name, whatever learns in it and wherever it runs."""

import logging
import math

import broken
import gymnasium
import numpy as np
import pytest
import torch
from broken import AFTER, FINE, STEPS, values
from conftest import compose_values, load, tiny

from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.envs import gymnasium as simulated
from metarl_cli.envs.gymnasium.workers import Simulators
from metarl_cli.envs.live import LiveFamily
from metarl_cli.envs.simulator import Simulator, together
from metarl_cli.errors import EnvironmentFault
from metarl_cli.experience.finite import MOST, StepCheck
from metarl_cli.experience.rollout import RandomPolicy, collect, run_episodes
from metarl_cli.interfaces import Step
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

ALGORITHMS = ("maml_dqn", "dqn", "rl2", "rl2_dqn", "evo_dqn", "evo_hyper", "adrl")


def family(processes=1, **more):
    return simulated.Family(simulated.Config.model_validate({**values(**more), "processes": processes}))


def configured(algo, processes=1, **more):
    """A tiny run of an algorithm in a broken environment."""
    composed = compose_values("train", [f"algo={algo}", *tiny(algo), "env.horizon=15"])
    if "episodes" in composed["algo"]:
        composed["algo"]["episodes"] = 4  # of 15 steps, as these draw new tasks, and with them new environments, each time
    composed["env"] = {"module": "gymnasium", **values(**more), "processes": processes}
    return composed


@pytest.mark.parametrize("how", ["reward_nan", "obs_nan", "obs_shape", "raises"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_names_the_environment(algo, how):
    algorithm = build(validate(TrainConfig, configured(algo, how=how))).algorithm
    with pytest.raises(EnvironmentFault, match=f"^env.id=Broken-v0: {STEPS[how]}.*, task push="):
        repeat(20, algorithm.train_step)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", STEPS)
def test_every_way_to_break_is_one_line(how, processes):
    broke = family(processes, how=how)
    env = broke.make(broke.sample_tasks(2, "train", numpy_rng(0, "tasks")), 1, torch_rng(0, "env"))
    with pytest.raises(EnvironmentFault, match=f"^env.id=Broken-v0: {STEPS[how]}"):
        repeat(AFTER + 1, lambda: env.step(torch.ones(2, 1, dtype=torch.long)))


@pytest.mark.parametrize("how", STEPS)
def test_what_is_broken_from_the_start_is_found_when_the_family_is_built(how):
    with pytest.raises(ConfigError, match=f"^env.id=Broken-v0: {STEPS[how]}"):
        validate(TrainConfig, configured("maml_dqn", how=how, after=0))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_environment_that_exits_while_it_is_built_is_named(processes):
    with pytest.raises(ConfigError, match=r"Broken-v0 cannot be built from .*: no licence"):
        validate(TrainConfig, configured("maml_dqn", processes, how="exits_at_once"))


@pytest.mark.parametrize("how", FINE)
def test_what_can_be_read_is_no_fault(how):
    env = (fine := family(how=how)).make(fine.named_task({}), 2, torch_rng(0, "env"))
    for _ in range(AFTER + 5):
        step = env.step(torch.ones(1, 2, dtype=torch.long))
    assert step.reward.shape == (1, 2)
    assert step.next_obs.shape == (1, 2, 2)


def test_a_process_that_dies_is_told_with_its_status():
    dying = family(2, how="dies")
    env = dying.make(dying.sample_tasks(2, "train", numpy_rng(0, "tasks")), 1, torch_rng(0, "env"))
    with pytest.raises(EnvironmentFault, match=r"^env.id=Broken-v0: it ended its process \(exit status 3\)"):
        repeat(AFTER + 1, lambda: env.step(torch.ones(2, 1, dtype=torch.long)))


@pytest.mark.parametrize("id", ["Unseeded-v0", "Remembers-v0"])
def test_an_environment_that_does_not_repeat_itself_is_told_of(id, caplog):
    with caplog.at_level(logging.WARNING):
        family(id=id)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"env.id={id}: the same seed and actions led elsewhere")


@pytest.mark.parametrize(
    ("id", "address", "message"),
    [
        ("Overwrites-v0", "attribute.goal", r"goal has no effect: Overwrites-v0 overwrites it .*\(0.5 was set, 1. is there"),
        ("Overwrites-v0", "scale.push", None),
        ("Copies-v0", "attribute.wind.1", "wind.1 has no effect: 1.0 was set, and it is 0.0"),
        ("Copies-v0", "attribute.wind", "wind is an array: name one entry"),
    ],
)
def test_a_parameter_that_does_not_hold_is_refused(id, address, message):
    if message is None:
        assert family(id=id, address=address).spec.obs_shape == (2,)
        return
    with pytest.raises(ValueError, match=message):
        family(id=id, address=address)


def test_a_task_by_name_that_does_not_hold_is_refused():
    """The family's own ranges leave the parameter alone."""
    overwriting = {**values(id="Overwrites-v0", address="attribute.goal"), "ranges": {}}
    alone = simulated.Family(simulated.Config.model_validate(overwriting))
    assert alone.named_task({"push": 1.0})["push"] == 1
    with pytest.raises(ValueError, match="goal has no effect"):
        alone.named_task({"push": 3.0})


def test_a_parameter_without_effect_is_told_of(caplog):
    with caplog.at_level(logging.WARNING):
        family(address="attribute.after", nominal=1e6, spread=(1e6, 2e6))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("env.parameters.push.set=attribute.after: Broken-v0 showed no effect in 200 random steps")


@pytest.mark.parametrize("algo", ["maml_dqn", "rl2"])
def test_actions_stay_within_bounds_that_no_short_number_hits(algo):
    composed = configured(algo, id="Bounded-v0", after=10**6)
    algorithm = build(validate(TrainConfig, composed)).algorithm
    for _ in range(3):
        algorithm.train_step()
    space = algorithm.family.spec.actions
    low, high = (float(edge.double()) for edge in space.bounds(torch.device("cpu")))
    assert -0.3 <= low < -0.3 + 1e-7
    assert 0.1 - 1e-7 < high <= 0.1


def test_whole_actions_are_rounded():
    env = (whole := family(id="Whole-v0", after=10**6)).make(whole.named_task({}), 1, torch_rng(0, "env"))
    for action, taken in ((0.4, 0), (1.9, 2), (2.5, 2), (7.0, 3), (-2.0, 0)):
        assert float(env.step(torch.full((1, 1, 1), action)).next_obs[0, 0, 0]) == taken


@pytest.mark.parametrize("how", ["obs_nan", "reward_vector", "exits"])
def test_an_environment_of_ones_own_is_checked_too(how):
    env = gymnasium.make("Broken-v0", how=how, disable_env_checker=True)
    live = LiveFamily(env, family().spec, torch.device("cpu"))
    with pytest.raises(EnvironmentFault, match=f"^Broken-v0: {STEPS[how]}"):
        collect(made := live.make(live.task, 1, torch_rng(0, "env")), RandomPolicy(live.spec.actions), start(made), 60)


def repeat(times, function):
    for _ in range(times):
        function()


def start(env):
    return {"rng": torch_rng(0, "act")}


# -- native families: looked at some steps at a time


class Physics:
    """Replaces one number of what a native family returns at one step."""

    def __init__(self, monkeypatch, native, t, where, value):
        self.t, self.clock, self.where, self.value, self.true = t, 0, where, value, native.dynamics
        monkeypatch.setattr(native, "dynamics", self)

    def __call__(self, *arguments):
        state, reward, terminated = self.true(*arguments)
        if self.clock == self.t:
            (state if self.where == "obs" else reward)[1, 0] = self.value
        self.clock += 1
        return state, reward, terminated


def native():
    module, config = load("env", compose_values("train", ["env=pendulum_family", "env.horizon=100"])["env"])
    return module.Family(config)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("t", [0, MOST - 1, MOST, 2 * MOST + 3, 99])
@pytest.mark.parametrize("where", ["reward", "obs"])
def test_native_numbers_are_found_wherever_they_are(where, t, value, monkeypatch):
    pendulum = native()
    Physics(monkeypatch, pendulum, t, where, value)
    task = pendulum.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    named = "reward" if where == "reward" else "(observation|reward)"
    with pytest.raises(EnvironmentFault, match=rf"^env.module=pendulum: the {named} is \S+ after \d+ steps, task \w+="):
        run_episodes(pendulum, task, RandomPolicy(pendulum.spec.actions), 2, torch_rng(0, "env"), torch_rng(0, "act"))
    pendulum = native()
    Physics(monkeypatch, pendulum, t, where, value)
    env = pendulum.make(task, 2, torch_rng(0, "env"))
    with pytest.raises(EnvironmentFault, match=rf"^env.module=pendulum: the {named} is .* after {t + 1} steps"):
        collect(env, RandomPolicy(pendulum.spec.actions), start(env), 100)


def test_other_shapes_are_told():
    pendulum = native()
    env = pendulum.make(pendulum.named_task({}), 2, torch_rng(0, "env"))
    step = env.step(torch.zeros(1, 2, 1))
    for name, wrong in (("reward", step.reward[..., None]), ("reward", step.reward.long()), ("terminated", step.reward)):
        with pytest.raises(EnvironmentFault, match=f"^env.module=pendulum: {name} is .* for each of 1 tasks x 2 environments"):
            StepCheck(env).see(step._replace(**{name: wrong}))
    with pytest.raises(EnvironmentFault, match=r"reward is \[1, 2\] of torch.int64, not one floating-point number for each"):
        StepCheck(env).see(step._replace(reward=step.reward.long()))
    StepCheck(env).see(Step(*step))


@pytest.mark.parametrize("algo", ["es_dqn", "adrl", "rl2", "maml_dqn", "dqn"])
def test_every_algorithm_names_native_physics(algo, monkeypatch):
    composed = compose_values("train", [f"algo={algo}", *tiny(algo), "env=pendulum_family"])
    algorithm = build(validate(TrainConfig, composed)).algorithm
    Physics(monkeypatch, algorithm.family, 3, "reward", math.nan)
    with pytest.raises(EnvironmentFault, match=r"env.module=pendulum: the reward is nan"):
        repeat(3, algorithm.train_step)


def test_pixels_and_half_numbers_are_read():
    class Pixels(broken.Broken):
        observation_space = gymnasium.spaces.Box(0, 255, (3, 4, 5), np.uint8)

    simulator = Simulator(Pixels(), "pixels")
    assert simulator._observation(np.full((3, 4, 5), 255, np.uint8)).dtype == np.uint8
    with pytest.raises(EnvironmentFault, match="of the type float32, the observation space of uint8"):
        simulator._observation(np.zeros((3, 4, 5), np.float32))
    half = Simulator(broken.Broken(), "half")
    assert half._observation(np.array([6e4, -6e4], np.float16)).dtype == np.float16
    with pytest.raises(EnvironmentFault, match="holds nan"):
        half._observation(np.array([0, np.nan], np.float16))


@pytest.mark.parametrize(
    ("observations", "rewards"),
    [
        ([[0.0, 1.0], [0.0, math.nan]], [0.0, 0.0]),
        ([[0.0, 1.0], [0.0, 1e30]], [0.0, 0.0]),
        ([[0.0, 1.0], [0.0]], [0.0, 0.0]),
        ([["a", "b"], ["c", "d"]], [0.0, 0.0]),
        ([[0.0, 1.0]] * 2, [0.0, -math.inf]),
        ([[0.0, 1.0]] * 2, [0.0, 2**62]),
        ([[0.0, 1.0]] * 2, [0.0, None]),
        ([[0.0, 1.0]] * 2, [0.0, [1.0, 2.0]]),
        ([[0.0, 1.0]] * 2, [[1.0, 2.0], [1.0, 2.0]]),
        ([[[0.0], [1.0]]] * 2, [0.0, 0.0]),
    ],
)
def test_a_look_at_all_answers_misses_none_that_is_refused_alone(observations, rewards):
    like = Simulator(broken.Broken(), "broken")
    assert like.shape == (2,)
    assert together(observations, rewards, like) is None
    with pytest.raises(EnvironmentFault):
        [like.checked(obs, reward, False, False) for obs, reward in zip(observations, rewards, strict=True)]


def test_what_all_answers_become():
    like = Simulator(broken.Broken(), "broken")
    seen, gained = together([np.array([0, 1], np.float32)] * 3, [1, True, np.float32(0.5)], like)
    assert (seen.shape, seen.dtype, gained.dtype) == ((3, 2), np.float32, np.float64)
    assert gained.tolist() == [1, 1, 0.5]


class Mixed(broken.Broken):
    """Whole numbers in a step, and others at the start of an episode, as lists of Python's numbers may have."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return [0.5, -0.25], {}

    def step(self, action):
        return [1, 2], 1, True, False, {}


def test_first_observations_keep_their_numbers_where_those_of_steps_are_whole():
    simulators = object.__new__(Simulators)
    simulators.envs, simulators.seeds, simulators.episodes = [Simulator(Mixed(), "mixed") for _ in range(2)], [0, 0], [0, 0]
    seen, *_, begun = simulators.step(np.zeros(2, int))
    assert seen.tolist() == [[1, 2]] * 2
    assert begun.tolist() == [[0.5, -0.25]] * 2

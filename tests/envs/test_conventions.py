"""Environments with other conventions: action masks, rewards that are vectors, a reset without a seed, tasks that are set."""

import math
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from conftest import tiny
from gymnasium import spaces
from test_gymnasium import config, inner, play, start

from metarl_cli.cli import main as cli
from metarl_cli.cli.listing import _family_facts
from metarl_cli.envs import gymnasium as simulated
from metarl_cli.envs import packages
from metarl_cli.envs.gymnasium import benchmarks
from metarl_cli.envs.gymnasium.conventions import OldInterface
from metarl_cli.envs.tasks import shares
from metarl_cli.errors import EnvironmentFault
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete


class Doors(gymnasium.Env):
    """Of five doors one or two are open, and to run against another is an error; ``shown`` says where the mask is."""

    taken: list[int] = []

    def __init__(self, shown="info", broken=None):
        self.shown, self.broken, self.action_space = shown, broken, spaces.Discrete(5, start=2)
        place = spaces.Box(-1, 1, (2,), np.float32)
        mask = spaces.Box(0, 1, (5,), np.int8)
        self.observation_space = spaces.Dict({"mask": mask, "place": place}) if shown == "observation" else place

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self._answer()

    def _answer(self, ended=False):
        self.open = np.zeros(5, np.int8)
        self.open[self.np_random.integers(5, size=2)] = not ended
        mask = {"short": self.open[:4], "none": 0 * self.open}.get(self.broken, self.open)
        place = np.array([0.5, self.clock / 9], np.float32)
        info = {} if self.broken == "silent" or self.shown == "observation" else {"mask": mask}
        return ({"mask": mask, "place": place} if self.shown == "observation" else place), info

    def step(self, action):
        assert self.open[action - 2], f"door {action} is closed"
        self.taken.append(int(action))
        self.clock += 1
        ended = self.clock == 7
        obs, info = self._answer(ended)
        return obs, float(action == 6), ended, False, info


class Two(gymnasium.Env):
    """Rewards are a pair."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), np.array([1.0, -3.0]), False, False, {}


class Old(gymnasium.Env):
    """The interface of before Gymnasium: no seed in reset, no info, one end."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def seed(self, seed):
        self.random = np.random.default_rng(seed)

    def reset(self):
        self.clock = 0
        return np.array([self.random.normal() + self.np_random.normal()], np.float32)

    def step(self, action):
        self.clock += 1
        over = {"TimeLimit.truncated": True} if action else {}
        return self.random.normal(size=1).astype(np.float32), 1.0, self.clock == 3, over


class Stale(gymnasium.Env):
    """The first episode of all begins elsewhere than later ones, as that of PyBullet's bodies."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)
    used = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.array([self.used], np.float32)
        self.used = 1.0
        return self.place, {}

    def step(self, action):
        return self.place, 0.0, False, False, {}


@pytest.fixture(autouse=True)
def registered():
    names = {"Doors-v0": Doors, "Two-v0": Two, "Old-v0": Old, "Stale-v0": Stale, "Seen-v0": Seen, "Forgetful-v0": Forgetful}
    for name, environment in names.items():
        gymnasium.register(name, environment)
    yield
    for name in names:
        gymnasium.registry.pop(name, None)
    gymnasium.registry.pop(benchmarks.ID, None)


def doors(shown="info", **constructor):
    place = {"constructor": {"shown": shown, **constructor}, "action_mask": f"{shown}.mask"}
    return start({"id": "Doors-v0", "horizon": 9, **place})


def train(algo, folder, lines):
    """Train a little on the environment of a yaml."""
    (folder / "conf" / "env").mkdir(parents=True)
    (folder / "conf" / "env" / "ours.yaml").write_text(f"# Ours.\ndefaults: [base/gymnasium@_here_]\n{lines}\n")
    small = [word for word in tiny(algo) if not word.startswith("env.")]
    words = ["train", "--config-dir", str(folder / "conf"), "env=ours", f"algo={algo}", *small, f"run={folder / 'run'}"]
    assert cli.main(words) == 0


# -- action masks


@pytest.mark.parametrize("shown", ["info", "observation"])
def test_the_mask_is_the_end_of_the_observation(shown):
    family, env = doors(shown)
    assert family.spec.actions == Discrete(5, masked=True)
    assert family.spec.obs_shape == (2 + 5,)
    for _ in range(30):
        (step,) = play(family, env, 1)
        expected = torch.as_tensor(np.stack([each.open for each in inner(env)])).reshape(3, 2, 5)
        assert torch.equal(step.obs[..., -5:], expected.float())
        assert (step.next_obs[step.terminated][:, -5:] == 1).all(), "no action is left at an end, and so none is forbidden"
        assert (step.obs[..., 0] == 0.5).all()


def test_the_mask_of_gymnasiums_taxi():
    family, env = start({"id": "Taxi-v4", "horizon": 30, "action_mask": "info.action_mask"})
    for _ in range(20):
        (step,) = play(family, env, 1)
        expected = np.stack([each.action_mask(each.s) for each in inner(env)])
        assert torch.equal(step.obs[..., -6:].flatten(0, 1), torch.as_tensor(expected).float())


@pytest.mark.parametrize("algo", ["maml_dqn", "rl2", "maml_pg", "rl2_dqn"])
def test_no_algorithm_takes_an_action_that_is_masked(algo, tmp_path):
    """Greedy, exploring, sampling: the environment fails at once if one does."""
    Doors.taken.clear()
    train(algo, tmp_path, "id: Doors-v0\nhorizon: 9\naction_mask: info.mask")
    assert set(Doors.taken) == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("short", r"the action mask has the shape \[4\], and there are 5 actions"),
        ("none", "the action mask allows no action"),
        ("silent", "info has no entry mask, which action_mask names"),
    ],
)
def test_a_mask_that_is_wrong_is_one_line(broken, message):
    with pytest.raises(EnvironmentFault, match=message):
        doors(broken=broken)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": "Pendulum-v1", "action_mask": "info.mask"}, "action_mask: actions are Box.* only discrete ones can be masked"),
        ({"id": "Doors-v0", "action_mask": "observation.mask"}, "action_mask: there is no entry mask in the observations Box"),
    ],
)
def test_what_cannot_be_masked_is_one_line(values, message):
    with pytest.raises(ValueError, match=message):
        simulated.Family(config({"horizon": 9, **values}))


# -- rewards, resets


def weighted(weights, **more):
    return start(
        {"id": "Two-v0", "horizon": 5, "wrappers": [{"name": "WeightedReward", "arguments": {"weights": weights}}], **more}
    )


def test_a_vector_of_rewards_is_weighted():
    _, env = weighted([2.0, 0.5])
    assert torch.equal(env.step(torch.zeros(3, 2, dtype=torch.long)).reward, torch.full((3, 2), 0.5))
    with pytest.raises(
        EnvironmentFault, match=r"an array of the shape \[2\], not one number: a wrapper must make one number of"
    ):
        start({"id": "Two-v0", "horizon": 5})
    with pytest.raises(EnvironmentFault, match="the reward has 2 entries, and there are 3 weights"):
        weighted([1.0, 1.0, 1.0])


def test_a_weight_can_be_what_tasks_vary():
    weight = {"parameters": {"w": {"nominal": 1.0, "set": "wrapper.WeightedReward.weights.1"}}, "ranges": {"w": [0.0, 2.0]}}
    family, env = weighted([2.0, 0.5], **weight)
    task = family.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    reward = env.step(torch.zeros(3, 2, dtype=torch.long)).reward
    assert reward[:, 0].tolist() == pytest.approx((2 - 3 * task["w"]).tolist())
    with pytest.raises(ValueError, match=r"wrapper.WeightedReward.weights.7: 7 is no entry of a list of 2"):
        weighted([2.0, 0.5], parameters={"w": {"nominal": 1.0, "set": "wrapper.WeightedReward.weights.7"}})


def test_a_reset_without_a_seed():
    """Both ways of before to draw random numbers are seeded: an episode is its seed, as everywhere."""
    family, env = start({"id": "Old-v0", "horizon": 9})
    steps = play(family, env, 7)
    again = play(family, start({"id": "Old-v0", "horizon": 9})[1], 7)
    for one, two in zip(steps, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.stack([step.ended for step in steps]).sum(0).tolist() == [[2, 2]] * 3
    old = OldInterface(Old())
    old.reset(seed=1)
    ends = [old.step(action)[2:4] for action in (0, 0, 1)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_episode_is_as_the_others(processes):
    """Else a run that goes on with simulators built anew would have other bits."""
    _, env = start({"id": "Stale-v0", "horizon": 9}, processes=processes)
    assert (env.obs == 1).all()


# -- benchmarks with tasks of their own


class Place(gymnasium.Env):
    """A place that is the task's number."""

    observation_space = spaces.Box(-999, 999, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def set_task(self, task):
        self.data = task.data

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([self.data], np.float32), {}

    def step(self, action):
        return np.array([self.data], np.float32), float(self.data), False, False, {}


class Away(Place):
    """Another environment."""


class Tasks:
    """A benchmark as Meta-World's: three tasks of each environment, and two more to test on."""

    train_classes, test_classes, train_tasks, test_tasks = {}, {}, [], []

    def __init__(self, seed=0):
        self.train_classes, self.test_classes = {"place": Place}, {"place": Place, "away": Away}
        self.train_tasks = [SimpleNamespace(env_name="place", data=seed + k) for k in range(3)]
        self.test_tasks = [SimpleNamespace(env_name=name, data=seed + 50 + k) for k in range(2) for name in ("place", "away")]


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """A benchmark of a package that the user has named."""
    (tmp_path / "my_tasks.py").write_text("from test_conventions import Tasks\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "_named", {"my_tasks"})
    benchmarks._load.cache_clear()
    yield "my_tasks.Tasks"
    sys.modules.pop("my_tasks", None)


def tasks_of(benchmark, **more):
    constructor = {"benchmark": benchmark, "arguments": {"seed": 100}, "env_name": "place"}
    goal = {"goal": {"nominal": 0, "set": "constructor.task"}}
    choices = {"choices": {"goal": [0, 1, 2]}, "test_choices": {"goal": [3, 4]}}
    return {"id": benchmarks.ID, "horizon": 4, "constructor": constructor, "parameters": goal, **choices, **more}


def test_a_benchmarks_own_tasks_train_and_test(benchmark):
    family, _ = start(tasks_of(benchmark))
    drawn = {split: family.sample_tasks(20, split, numpy_rng(0, split)) for split in family.splits}
    assert {split: set(task["goal"].tolist()) for split, task in drawn.items()} == {
        "train": {0, 1, 2},
        "validation": {0, 1, 2},
        "test": {3, 4},
    }
    assert [shares(family, split) for split in family.splits] == [True, True, False]
    seen = family.make(drawn["test"], 1, torch_rng(0, "env")).obs.flatten()
    assert torch.equal(seen, 150 + drawn["test"]["goal"] - 3)
    assert torch.equal(family.make(drawn["train"], 1, torch_rng(0, "env")).obs.flatten(), 100 + drawn["train"]["goal"])
    assert float(family.named_task({"goal": 4.0})["goal"]) == 4
    with pytest.raises(ValueError, match=r"goal must be one of 0.0, 1.0, 2.0, 3.0, 4.0, got 5"):
        family.named_task({"goal": 5.0})


def test_environments_of_a_benchmark_can_be_held_out(benchmark):
    constructor = {"benchmark": benchmark, "task": 0}
    which = {"parameters": {"skill": {"nominal": "place", "set": "constructor.env_name"}}}
    values = {"constructor": constructor, **which, "choices": {"skill": ["place"]}, "test_choices": {"skill": ["away"]}}
    family, _ = start(tasks_of(benchmark, **values))
    names = [family.rows(family.sample_tasks(3, split, numpy_rng(0, "t")))[0]["skill"] for split in ("train", "test")]
    assert names == ["place", "away"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_name": "plaze"}, "my_tasks.Tasks has no environment plaze; did you mean place"),
        ({"benchmark": "subprocess.Popen"}, "subprocess.Popen is no class with train_classes"),
        ({"benchmark": "not_imported_yet.Tasks"}, "not_imported_yet is not imported because a configuration names it"),
        ({"benchmark": "Tasks"}, "benchmark=Tasks must be a package and its class, such as metaworld.ML10"),
    ],
)
def test_what_a_benchmark_has_not_is_one_line(benchmark, change, message):
    values = tasks_of(benchmark)
    with pytest.raises(ValueError, match=message):
        start({**values, "constructor": {**values["constructor"], **change}})
    with pytest.raises(ValueError, match=r"my_tasks\.Tasks has 5 tasks of place, from 0 on; got 5"):
        start({**values, "test_choices": {"goal": [4, 5]}})


def test_which_splits_share_their_tasks_is_listed(benchmark):
    facts = [_family_facts(start(tasks_of(benchmark, **more))[0])["splits"] for more in ({}, {"test_choices": {}})]
    assert facts[0] == "train, validation, test, of which train and validation share their few tasks"
    assert facts[1] == "train, validation, test, which share their few tasks"


def test_of_many_numbers_some_are_tried():
    """A simulator is built for each that is."""
    values = {"parameters": {"g": {"nominal": 1, "set": "attribute.gravity"}}, "choices": {"g": list(range(1, 101))}}
    family = simulated.Family(config({"id": "CartPole-v1", "horizon": 9, **values}))
    tried = [row["g"] for row in family._extremes()]
    assert len(tried) == 16
    assert {1, 100} < {*tried} < {*range(1, 101)}


@pytest.mark.parametrize("kind", ["test_choices", "ood_choices"])
def test_held_out_choices_are_others(kind, benchmark):
    with pytest.raises(ValueError, match=f"{kind} of goal must be other values than its choices"):
        config(tasks_of(benchmark, **{kind: {"goal": [2]}}))


class Seen(gymnasium.Env):
    """An environment with any observation space; each observation is a draw."""

    action_space = spaces.Discrete(2)

    def __init__(self, space=None):
        self.observation_space = SPACES[space]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.clock += 1
        return self.observation_space.sample(), 1.0, self.clock == 5, False, {}


SPACES = {
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "booleans": spaces.Box(0, 1, (4,), bool),
    "matrix of booleans": spaces.Box(0, 1, (3, 2), bool),
    "image of booleans": spaces.Box(0, 1, (3, 12, 12), bool),
    "board": spaces.Box(0, 2, (6, 7), np.uint8),
    "grey": spaces.Box(0, 255, (12, 12), np.uint8),
    "bytes": spaces.Box(0, 255, (6,), np.uint8),
    "image in a dict": spaces.Dict({"image": spaces.Box(0, 255, (2, 2), np.uint8), "speed": spaces.Box(-1, 1, (1,))}),
}
SHAPES = {"scalar": (1,), "grey": (1, 12, 12), "image in a dict": (5,)}


def seeing(space):
    return config({"id": "Seen-v0", "horizon": 5, "constructor": {"space": space}})


@pytest.mark.parametrize("space", SPACES)
def test_every_array_becomes_numbers_or_an_image(space):
    family = simulated.Family(seeing(space))
    assert family.spec.obs_shape == SHAPES.get(space, SPACES[space].shape)
    env = family.make(family.sample_tasks(2, "train", numpy_rng(0, "tasks")), 3, torch_rng(0, "env"))
    step = env.step(torch.zeros(2, 3, dtype=torch.long))
    images = {"grey": torch.uint8, "image of booleans": torch.bool}
    assert family.spec.pixels == (space in images)
    for obs in (env.obs, step.next_obs):
        assert obs.shape == (2, 3, *family.spec.obs_shape)
        assert obs.dtype == images.get(space, torch.float32)
    assert family.spec.obs_scale == {"bytes": (255.0,) * 6, "image in a dict": (255.0,) * 4 + (1.0,)}.get(space, ())


@pytest.mark.parametrize("algo", ["maml_dqn", "rl2", "maml_pg"])
@pytest.mark.parametrize(
    "space", ["scalar", *(pytest.param(space, marks=pytest.mark.slow) for space in ("booleans", "image of booleans"))]
)
def test_algorithms_learn_from_every_row_of_numbers(algo, space, tmp_path):
    train(algo, tmp_path, f"id: Seen-v0\nhorizon: 5\nconstructor: {{space: {space}}}")


LEVELS = {"id": "CartPole-v1", "horizon": 9, "parameters": {"level": {"nominal": 0, "set": "seed"}}}


@pytest.mark.parametrize("high", [3, 1000])
def test_levels_of_test_tasks_are_none_of_training(high):
    family = simulated.Family(config(LEVELS, ranges={"level": [0.0, float(high)]}))
    drawn = {split: family.sample_tasks(500, split, numpy_rng(0, split))["level"] for split in ("train", "validation", "test")}
    for level in drawn.values():
        assert torch.equal(level, level.round())
    assert not {*drawn["test"].tolist()} & {*drawn["train"].tolist(), *drawn["validation"].tolist()}
    assert int(drawn["train"].min()) <= high // 50
    assert int(drawn["test"].max()) >= high - high // 50
    assert "test" in family.held_out
    assert shares(family, "validation")
    assert len({*drawn["test"].tolist()}) == high - high // 2, "each is drawn once before any is drawn again"


@pytest.mark.parametrize(
    "values",
    [
        {"ranges": {"level": [0.5, 3.0]}},
        {"ranges": {"level": [-1.0, 3.0]}},
        {"ranges": {"level": [0.0, math.inf]}},
        {"choices": {"level": [1, -2]}},
        {"choices": {"level": [0.5, 2]}},
    ],
)
def test_a_level_is_a_whole_number(values):
    with pytest.raises(ValueError, match="level is a seed: its values must be whole numbers from 0 to 16,777,216"):
        config(LEVELS, **values)


def test_levels_are_no_other_distribution():
    with pytest.raises(ValueError, match="leave it out of ood_ranges"):
        config(LEVELS, ranges={"level": [0.0, 9.0]}, ood_ranges={"level": [0.0, 99.0]})


def test_a_level_between_two_is_refused():
    family = simulated.Family(config(LEVELS, ranges={"level": [0.0, 9.0]}))
    with pytest.raises(ValueError, match="level must be a whole number"):
        family.named_task({"level": 0.5})


class Forgetful(gymnasium.Env):
    """A fault of its own, which no wrapper made."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {}["speed"]


@pytest.mark.parametrize("wrappers", [[], [{"name": "Velocity", "arguments": {"velocity": 1.0}}]])
def test_a_missing_key_of_an_environment_is_its_own(wrappers):
    with pytest.raises(EnvironmentFault, match="reset raised KeyError: 'speed'"):
        simulated.Family(config({"id": "Forgetful-v0", "horizon": 5, "wrappers": wrappers}))


def test_choices_of_a_flag_are_flags():
    hard = {"hard": {"nominal": False, "set": "constructor.space"}}
    values = config({**LEVELS, "parameters": hard}, choices={"hard": [False, True]})
    assert [values.value("hard", number) for number in (0.0, 1.0)] == [False, True]
    assert all(isinstance(values.value("hard", number), bool) for number in (0.0, 1.0))

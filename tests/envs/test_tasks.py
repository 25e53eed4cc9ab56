"""Distributions of task parameters by hand, and the tasks that a family draws from them."""

import numpy as np
import pytest
import torch
from conftest import ENVS, compose_values, load, short
from probes import Buttons

from metarl_cli.envs import cartpole
from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.envs.tasks import Choice, Uniform
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Env, Family, device_of, num_tasks
from metarl_cli.seeding import torch_rng

UNIT = np.array([0.0, 0.25, 0.5, 0.75])


def test_uniform_by_hand():
    distribution = Uniform(2.0, 6.0)
    assert distribution.sample(UNIT).tolist() == [2, 3, 4, 5]
    assert distribution.contains(np.array([1.9, 2.0, 6.0, 6.1, -3.0])).tolist() == [False, True, True, False, False]
    assert not distribution.finite
    assert Uniform(2.0, 2.0).finite


def test_signed_uniform_by_hand():
    """The lower half of the unit interval is negative, and its middle the smallest size."""
    distribution = Uniform(2.0, 6.0, signed=True)
    assert distribution.sample(UNIT).tolist() == [-6, -4, 2, 4]
    assert distribution.contains(np.array([-6.0, -1.9, 1.9, 6.0])).tolist() == [True, False, False, True]


def test_choice_by_hand():
    distribution = Choice((5, 10, 20))
    assert distribution.sample(UNIT).tolist() == [5, 5, 10, 20]
    assert distribution.contains(np.array([10.0, 10.1])).tolist() == [True, False]
    assert distribution.finite


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, []),
        ({"gravity": 9.8, "force_mag": -8.0}, []),
        (
            {"gravity": 20.0},
            ["gravity=20 is outside [4.9, 19.6] of TRAIN, within [2.5, 25] of OOD"],
        ),
        (
            {"gravity": 1e9},
            ["gravity=1e+09 is outside [4.9, 19.6] of TRAIN, and outside [2.5, 25] of OOD"],
        ),
        (
            {"force_mag": -2.0},
            ["force_mag=-2 is outside +-[5, 15] of TRAIN, and outside +-[4, 20] of OOD"],
        ),
    ],
)
def test_what_no_training_task_has_is_said(values, said):
    said = [text.replace("TRAIN", "the training tasks").replace("OOD", "the out-of-distribution tasks") for text in said]
    assert short("cartpole_family").untrained(values) == said
    mixed = {f"cartpole_family.{name}": value for name, value in values.items()}
    assert short("classic_mix").untrained(mixed) == [f"cartpole_family.{text}" for text in said]


@pytest.mark.parametrize("name", ENVS)
def test_nothing_is_said_of_a_task_that_training_may_draw(name):
    family = short(name)
    tasks = family.sample_tasks(20, "train", np.random.default_rng(0))
    for row in range(20):
        values = {key: float(value[row]) for key, value in tasks.items() if value.dim() == 1}
        assert family.untrained(values) == []


def test_a_range_of_one_value_beside_choices():
    parameters = {"g": {"nominal": 9.8, "set": "attribute.gravity"}, "l": {"nominal": 0.5, "set": "attribute.length"}}
    values = compose_values("train", ["env=lunar_lander_family"])["env"] | {
        "id": "CartPole-v1",
        "constructor": {},
        "parameters": parameters,
        "ranges": {"g": [5.0, 5.0]},
        "ood_ranges": {},
        "choices": {"l": [0.25, 1.0]},
    }
    module, config = load("env", values)
    family = module.Family(config)
    tasks = family.sample_tasks(20, "train", np.random.default_rng(0))
    assert family.finite
    assert set(tasks["g"].tolist()) == {5.0}
    assert set(tasks["l"].tolist()) == {0.25, 1.0}


class Slope(NativeFamily):
    """Two parameters and no physics."""

    parameters = {"force": 1.0, "mass": 2.0}
    positive = ("mass",)

    def initial_state(self, shape, like, rng):
        raise AssertionError("only tasks are drawn")

    dynamics = initial_state


def slope(ranges, ood_ranges=None, signed=()):
    return Slope(NativeConfig(horizon=1, ranges=ranges, ood_ranges=ood_ranges or {}), signed=signed)


def test_a_parameter_without_a_range_keeps_its_nominal_value():
    family = slope({"mass": [1.0, 3.0]})
    tasks = family.sample_tasks(50, "train", np.random.default_rng(0))
    assert list(tasks) == ["force", "mass"]
    assert set(tasks["force"].tolist()) == {1.0}
    assert not family.finite
    signed = slope({}, signed=["force"])
    assert set(signed.sample_tasks(50, "train", np.random.default_rng(0))["force"].tolist()) == {-1.0, 1.0}
    assert signed.finite
    assert (slope({}).finite, slope({}).splits) == (True, ("train", "validation", "test"))


def test_ood_tasks_lie_outside_in_at_least_one_parameter():
    family = slope({"force": [1.0, 2.0], "mass": [1.0, 3.0]}, {"force": [0.5, 4.0]}, signed=["force"])
    assert family.splits == ("train", "validation", "test", "ood")
    tasks = family.sample_tasks(100, "ood", np.random.default_rng(0))
    size = tasks["force"].abs()
    assert bool(((size < 1) | (size > 2)).all())
    assert float(tasks["force"].min()) < 0 < float(tasks["force"].max())
    assert 1 <= float(tasks["mass"].min()) <= float(tasks["mass"].max()) <= 3


def test_ranges_with_values_that_make_no_sense_are_refused():
    for ranges, message in (
        ({"mass": [0.0, 1.0]}, "mass must be above 0"),
        ({"mas": [1.0, 2.0]}, "no such task parameter: mas"),
    ):
        with pytest.raises(ValueError, match=message):
            slope(ranges)


def test_helpers_of_a_task():
    task = {"mean": torch.zeros(3, 5), "other": torch.zeros(3)}
    assert (num_tasks(task), device_of(task)) == (3, torch.device("cpu"))


def test_what_a_family_need_not_give_has_a_default():
    class Still(Env):
        def step(self, action): ...
        def render(self): ...
        def state_dict(self): ...
        def load_state_dict(self, state): ...

    class Least(Family):
        def sample_tasks(self, num, split, rng): ...
        def named_task(self, values): ...
        def make(self, task, num_envs, rng, render=False): ...

    family, env = Least(), Still()
    assert (family.splits, family.finite, family.max_envs) == (("train", "validation", "test"), False, None)
    assert (family.optimum({}), family.groups({}), family.describe(torch.zeros(1))) == (None, {}, None)
    assert not env.can_select_rows
    with pytest.raises(NotImplementedError, match="Still cannot drop the environments of single tasks"):
        env.select_rows(torch.tensor([True]))


def test_selected_rows_continue_their_episodes():
    module, config = load("env", compose_values("train", ["env=cartpole_family"])["env"])
    family = module.Family(config)
    tasks = family.sample_tasks(4, "train", np.random.default_rng(0))
    envs = [family.make(tasks, 3, torch_rng(0, "env")) for _ in range(2)]
    rows = torch.tensor([True, False, False, True])
    assert envs[0].can_select_rows
    envs[0].select_rows(rows)
    assert torch.equal(envs[0].obs, envs[1].obs[rows])
    for t in range(5):
        few, all_ = envs[0].step(torch.full((2, 3), t % 2)), envs[1].step(torch.full((4, 3), t % 2))
        assert not all_.ended.any()
        assert torch.equal(few.next_obs, all_.next_obs[rows])


def test_a_family_without_a_picture_says_so():
    family = Buttons()
    env = family.make(family.named_task({}), 1, torch_rng(0))
    with pytest.raises(UserError, match="Buttons cannot be drawn"):
        env.render()


def test_an_oracle_is_given_every_parameter_that_varies():
    """The extremes of training are -1 and 1, the values of ood tasks beyond; a sign is a number of its own."""
    values = torch.tensor([4.0, 6.0, -5.0, 8.0])
    assert Uniform(4.0, 6.0).standard(values)[:, 0].tolist() == [-1, 1, -10, 3]
    assert Uniform(4.0, 6.0, signed=True).standard(values).tolist() == [[-1, 1], [1, 1], [0, -1], [3, 1]]
    assert Choice((-1.0, 3.0)).standard(torch.tensor([-1.0, 3.0])).tolist() == [[-1], [1]]
    assert Choice((0.0, 1.0, 2.0)).standard(torch.tensor([1.0, 4.0])).tolist() == [[0, 0, 1, 0], [3, 0, 0, 0]]
    ranges = {"gravity": [5.0, 15.0], "force_mag": [5.0, 15.0], "length": [0.5, 0.5]}
    for reversible, chosen, size in ((True, ranges, 3), (False, ranges, 2), (True, {}, 2), (False, {}, None)):
        config = cartpole.Config(horizon=5, reversible=reversible, ranges=chosen, ood_ranges={})
        family = cartpole.Family(config)
        knowledge = family.knowledge(family.sample_tasks(7, "train", np.random.default_rng(0)))
        assert knowledge is None if size is None else knowledge.shape == (7, size)


@pytest.mark.parametrize("name", ENVS)
def test_what_an_oracle_is_given_tells_the_tasks_apart(name):
    """Numbers of about 1, which differ where tasks differ, and do not depend on other tasks; none where all tasks are one."""
    family = short(name, native=False)
    task = family.sample_tasks(12, "test", np.random.default_rng(0))
    rows = torch.cat([value.reshape(12, -1) for value in task.values()], 1)
    known = family.knowledge(task)
    if known is None:
        assert len(rows.unique(dim=0)) == 1
        return
    assert known.shape[0] == 12
    assert known.dtype == torch.get_default_dtype()
    assert float(known.abs().max()) < 20
    assert len(known.unique(dim=0)) == len(rows.unique(dim=0)) > 1
    alone = family.knowledge({name: value[5:7] for name, value in task.items()})
    torch.testing.assert_close(alone, known[5:7])


def test_what_is_known_by_hand():
    grid = short("key_to_door", native=False)
    assert grid.knowledge(grid.named_task({"key_x": 8, "key_y": 4, "door_x": 0})).tolist() == [[1, 0, -1, -0.75]]
    arms = short("bandit", native=False)
    assert arms.knowledge(arms.named_task({"arm_0": 1.0, "arm_1": 0.25}))[0, :3].tolist() == [1, -0.5, 0]
    mix = short("classic_mix", native=False)
    task = mix.sample_tasks(2, "test", np.random.default_rng(0))
    known = mix.knowledge(task)
    cart = mix.families["cartpole_family"].knowledge(mix.part(task, "cartpole_family", torch.tensor([0])))
    assert known[:, :2].tolist() == [[1, 0], [0, 1]]
    assert known[0, 2 : 2 + cart.shape[1]].tolist() == cart[0].tolist()
    assert not known[0, 2 + cart.shape[1] :].any(), "nothing is said of the hill that this task has not"
    assert not known[1, 2 : 2 + cart.shape[1]].any()

"""The measurement of individuals: compiled, it finds what it finds otherwise, in every family whose physics draw nothing."""

import importlib
import math

import pytest
import torch
from conftest import ENVS, compose_train, inherited, load, short

from metarl_cli.envs.native import NativeFamily
from metarl_cli.errors import EnvironmentFault
from metarl_cli.evolution.measuring import Measuring, _filled, _kept
from metarl_cli.networks.compiling import Compiled
from metarl_cli.networks.stacked import fresh
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng

COPIES, TASKS, EPISODES = 9, 2, 2


def drawing_nothing() -> list[str]:
    """The native families whose dynamics draw no random numbers, one of each module."""
    found = {}
    for env in ENVS:
        family = importlib.import_module(f"metarl_cli.envs.{inherited('env', env)['module']}").Family
        if issubclass(family, NativeFamily) and not family.stochastic:
            found.setdefault(family, env)
    return list(found.values())


@pytest.fixture
def graphs(monkeypatch):
    """Run traced graphs without compiling them, which takes long; yield the list of graphs, one for each batch size."""
    made = []
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_: made.append(graph) or graph)
    return made


def learner_for(family):
    code, config = load("learner", compose_train("algo=es_dqn", "learner.network.hidden=[8]").learner)
    return code.Learner(config, family.spec)


def measured(family, compile, limit):
    """Returns and lengths of networks that differ much, so that their episodes end at different times."""
    learner = learner_for(family)
    params = {name: 5 * value for name, value in fresh(learner, COPIES, torch_rng(0, "weights")).items()}
    task = family.sample_tasks(TASKS, "train", numpy_rng(0, "tasks"))
    task = {name: value.repeat(COPIES, *[1] * (value.dim() - 1)) for name, value in task.items()}
    with CommonRandomNumbers(COPIES):
        env = family.make(task, EPISODES, torch_rng(0, "env"))
    env.one_episode()
    with torch.no_grad():
        return Measuring(learner, compile)(env, params, COPIES, limit)


@pytest.mark.parametrize("env", drawing_nothing())
@pytest.mark.parametrize("limit", [20, pytest.param(7, marks=pytest.mark.slow)])
def test_compiled_measurement_is_the_plain_one(env, limit, graphs):
    family = short(env)
    limit = min(limit, family.spec.horizon)
    plain = measured(family, False, limit)
    family.compile(Compiled)
    found = measured(family, True, limit)
    assert bool(graphs) == (family.code is not None), "MuJoCo's physics are not functions of tensors"
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)


def test_individuals_leave_the_batch(graphs):
    """Nine individuals become two, and the sums of those that left stay."""
    values = compose_train("env=cartpole_family").env
    family = values.module.Family(values.config)
    plain = measured(family, False, 500)
    family.compile(Compiled)
    found = measured(family, True, 500)
    assert len(graphs) == 3, "the dynamics of the first step, and the episodes of nine and of two"
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("individuals", "living", "tasks", "plain", "compiled"),
    [(64, 40, 2, 64, 64), (64, 32, 2, 32, 64), (64, 16, 2, 16, 16), (64, 3, 2, 3, 4), (64, 1, 2, 1, 1), (64, 1, 1, 64, 4)],
)
def test_how_many_stay(individuals, living, tasks, plain, compiled):
    assert _kept(individuals, living, tasks, False) == plain
    assert _kept(individuals, living, tasks, True) == compiled


def test_those_that_live_stay_and_others_fill_in():
    lives = torch.tensor([False, False, True, False, True])
    assert _filled(lives, 3).tolist() == [True, False, True, False, True]
    assert _filled(lives, 2).tolist() == lives.tolist()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_compiled_step_that_is_not_finite_is_named_as_a_plain_one(wrong, graphs, monkeypatch):
    family = short("pendulum_v1")
    calm = family.dynamics

    def grows(state, action, task, rng):
        state, reward, terminated = calm(state, action, task, rng)
        return state, torch.where(state[..., 1].abs() > 1, wrong, reward), terminated

    monkeypatch.setattr(family, "dynamics", grows)
    with pytest.raises(EnvironmentFault) as plain:
        measured(family, False, 20)
    family.compile(Compiled)
    with pytest.raises(EnvironmentFault) as found:
        measured(family, True, 20)
    assert str(found.value) == str(plain.value)
    assert "after 1 steps" not in str(plain.value)
    assert graphs


@pytest.mark.parametrize("step", [1, 3, 7, 18])
def test_a_single_step_that_is_not_finite_is_named_as_a_plain_one(step, graphs, monkeypatch):
    """In compiled code the states tell which step it is."""
    family = short("pendulum_v1")

    def counts(state, action, task, rng):
        after = torch.stack([state[..., 0] * 0, state[..., 1] + 1, *state[..., 2:].unbind(-1)], -1)
        return after, torch.where(after[..., 1] == step, math.nan, after[..., 1]), torch.zeros_like(after[..., 0]).bool()

    monkeypatch.setattr(family, "dynamics", counts)
    monkeypatch.setattr(family, "initial_state", lambda shape, like, rng: like.new_zeros(*shape, 2))
    monkeypatch.setattr(family, "observe", lambda state: torch.nn.functional.pad(state, (0, 1)))
    for compile in (False, True):
        if compile:
            family.compile(Compiled)
        with pytest.raises(EnvironmentFault, match=f"the reward is nan after {step} steps"):
            measured(family, compile, 20)
    assert graphs or step == 1


def test_rewards_of_more_bits_are_summed(graphs, monkeypatch):
    family = short("cartpole_family")
    lengths = measured(family, False, 20)[1]
    calm = family.dynamics

    def doubled(*arguments):
        state, reward, terminated = calm(*arguments)
        return state, 2 * reward.double(), terminated

    monkeypatch.setattr(family, "dynamics", doubled)
    for compile in (False, True):
        if compile:
            family.compile(Compiled)
        assert torch.equal(measured(family, compile, 20)[0], 2 * lengths)
    assert graphs

"""Replay keeps the latest transitions of each task and mixes no tasks."""

import weakref

import pytest
import torch
from conftest import compose_train

from metarl_cli.config.footprint import blank_transitions
from metarl_cli.experience.replay import Replay, RowLayout
from metarl_cli.interfaces import Transitions
from metarl_cli.runs.build import build


def batch(first: int, steps: int, tasks: int = 2, envs: int = 2) -> Transitions:
    """Transitions whose reward tells task and number: 1000 * task + count."""
    count = first + torch.arange(steps * envs, dtype=torch.float32).reshape(1, steps, envs)
    reward = 1000.0 * torch.arange(tasks)[:, None, None] + count
    flags = torch.zeros(tasks, steps, envs, dtype=torch.bool)
    return Transitions(reward[..., None], flags.long(), reward, reward[..., None], flags, flags, torch.ones_like(reward))


def test_keeps_the_latest_of_each_task():
    replay = Replay(num_tasks=2, capacity=6)
    replay.add(batch(0, steps=2))
    assert len(replay) == 4
    replay.add(batch(4, steps=2))  # two of the first four must go
    sample = replay.sample(torch.tensor([1, 0]), 500, torch.Generator().manual_seed(0))
    assert sample.reward.shape == (2, 1, 500)
    assert sorted(set(sample.reward[0].flatten().tolist())) == [1002, 1003, 1004, 1005, 1006, 1007]
    assert sorted(set(sample.reward[1].flatten().tolist())) == [2, 3, 4, 5, 6, 7]
    assert torch.equal(sample.obs[..., 0], sample.reward)


@pytest.mark.parametrize("obs", [((3, 5, 7), torch.uint8), ((5,), torch.float32), ((1,), torch.float64), ((2, 3), torch.bool)])
@pytest.mark.parametrize("action", [((), torch.int64), ((3,), torch.float32), ((1,), torch.uint8)])
def test_holds_fields_of_any_type_and_shape(obs, action):
    """A transition is drawn whole: every field as it was added, from the same step."""

    def numbers(shape, dtype):
        count = torch.arange(2 * 6 * torch.Size(shape).numel()).view(2, 3, 2, *shape)
        return count % 2 == 1 if dtype == torch.bool else (count % 251).to(dtype)

    number = torch.arange(12.0).view(2, 3, 2)
    added = Transitions(numbers(*obs), numbers(*action), number, numbers(*obs), number == 1, number == 2, torch.ones(2, 3, 2))
    replay = Replay(num_tasks=2, capacity=8)
    replay.add(added)
    drawn = replay.sample(torch.tensor([1, 0]), 100, torch.Generator().manual_seed(0))
    steps = drawn.reward.long()  # [2, 1, 100], which of the 12 it is
    assert set(steps[0].flatten().tolist()) == set(range(6, 12))
    assert set(steps[1].flatten().tolist()) == set(range(6))
    for name, field in added._asdict().items():
        assert getattr(drawn, name).dtype == field.dtype
        assert torch.equal(getattr(drawn, name), field.flatten(0, 2)[steps]), name


def test_refuses_a_batch_it_cannot_hold():
    with pytest.raises(ValueError, match="does not fit"):
        Replay(2, capacity=3).add(batch(0, steps=2))


def test_round_trip():
    replay, other = Replay(2, 6), Replay(2, 6)
    replay.add(batch(0, steps=3))
    other.load_state_dict(replay.state_dict())
    rows = torch.arange(2)
    a, b = (r.sample(rows, 20, torch.Generator().manual_seed(1)).reward for r in (replay, other))
    assert torch.equal(a, b)


def test_saved_and_loaded_on_the_way_nothing_is_lost():
    """At every fill level, and as versions before saved it: with all the room there is."""
    replay, rows = Replay(2, 50), torch.arange(2)
    for first in range(0, 160, 4):
        replay.add(batch(first, steps=2))
        state = replay.state_dict()
        assert state["data"]["reward"].untyped_storage().nbytes() == 4 * 2 * len(replay), "what is held, and no more, is saved"
        if first % 8:
            empty = [2, 50 - len(replay)]
            state["data"] = {k: torch.cat([x, x.new_zeros(*empty, *x.shape[2:])], 1) for k, x in state["data"].items()}
        replay = Replay(2, 50)
        replay.load_state_dict(state)
        found = replay.sample(rows, 1000, torch.Generator().manual_seed(first)).reward
        latest = range(max(0, first + 4 - 50), first + 4)
        assert sorted(set(found[0].flatten().tolist())) == list(latest)
        assert sorted(set(found[1].flatten().tolist())) == [1000 + x for x in latest]


def test_another_task_takes_the_place_of_one():
    replay = Replay(2, 6)
    replay.add(batch(0, steps=2))
    replay.select_tasks(torch.tensor([1, 1]))
    replay.add(batch(4, steps=1))
    found = replay.sample(torch.arange(2), 500, torch.Generator().manual_seed(0)).reward
    assert sorted(set(found[0].flatten().tolist())) == [4, 5, 1000, 1001, 1002, 1003]
    assert sorted(set(found[1].flatten().tolist())) == [1000, 1001, 1002, 1003, 1004, 1005]


def test_gives_its_memory_back():
    replay = Replay(2, 6)
    replay.add(batch(0, steps=2))
    memory = weakref.ref(replay.rows.untyped_storage())
    assert memory() is not None
    replay.clear()
    assert memory() is None
    assert len(replay) == 0


@pytest.mark.parametrize("field", ["obs", "reward"])
def test_refuses_transitions_of_another_type_or_shape(field):
    """A number that is converted to another type may be another number."""
    replay = Replay(2, 6)
    replay.add(batch(0, steps=1))
    other = batch(2, steps=1)
    value = getattr(other, field)
    other = other._replace(**{field: value.double() if field == "reward" else torch.cat([value, value], -1)})
    with pytest.raises(ValueError, match="other types or shapes"):
        replay.add(other)


@pytest.mark.parametrize("env", ["cartpole_family", "navigation_2d_continuous", "sprite_grid"])
def test_takes_the_memory_that_a_transition_is_said_to_take(env):
    spec = build(compose_train(f"env={env}")).family.spec
    layout = RowLayout(blank_transitions(spec, 1, 1, 1))
    assert layout.width * layout.unit.itemsize == spec.bytes_per_transition


@pytest.mark.parametrize("tasks", [3, 2])
def test_refuses_a_state_that_does_not_fit(tasks):
    """Another number of tasks, or fewer transitions than it counts in one field."""
    replay = Replay(2, 6)
    replay.add(batch(0, steps=2))
    state = replay.state_dict()
    if tasks == 2:
        state["data"]["obs"] = state["data"]["obs"][:, :3]
    with pytest.raises(ValueError, match="another size"):
        Replay(tasks, 6).load_state_dict(state)

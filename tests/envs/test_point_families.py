"""Points that look for a target: continuous navigation and state plus action, with rewards and optima by hand."""

import numpy as np
import pytest
import torch
from conftest import compose_train, load

from metarl_cli.errors import UserError
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Continuous, Discrete


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def walk(ours, task, moves):
    """Steps of one environment under a list of moves ``[D]``."""
    env = ours.make(task, 1, torch_rng(0, "env"))
    return [env.step(torch.tensor(move).reshape(1, 1, -1)) for move in moves]


def straight(ours, tasks, target):
    """The return [M] of walking straight to ``target [M, D]``, one environment each."""
    env = ours.make(tasks, 1, torch_rng(0, "env"))
    total, alive = 0.0, torch.ones(env.shape, dtype=torch.bool)
    for _ in range(ours.spec.horizon):
        step = env.step(target[:, None] - env.obs)
        total, alive = total + step.reward * alive, alive & ~step.terminated
    return total[:, 0]


def test_continuous_navigation_by_hand(float64):
    ours = family("navigation_2d_continuous")
    assert (ours.spec.actions, ours.spec.horizon) == (Continuous((-0.1, -0.1), (0.1, 0.1)), 100)
    moves = [[0.05, 0.0], [9.0, -9.0], [0.1, 0.1], [0.0, 0.092], [0.0, 0.0]]
    places = [(0.05, 0.0), (0.15, -0.1), (0.25, 0.0), (0.25, 0.092), (0.0, 0.0)]
    steps = walk(ours, ours.named_task({"goal_x": 0.255, "goal_y": 0.1}), moves)
    distances = [float(np.hypot(0.255 - x, 0.1 - y)) for x, y in places]
    assert [float(step.reward) for step in steps] == pytest.approx([-d for d in distances])
    assert [bool(step.terminated) for step in steps] == [False, False, False, True, False]
    assert steps[3].next_obs.flatten().tolist() == pytest.approx([0.25, 0.092])
    assert steps[3].obs.flatten().tolist() == [0, 0]


def test_discrete_navigation_is_as_it_was(float64):
    """Five moves, twenty steps, no end at the goal."""
    ours = family("navigation_2d")
    assert (ours.spec.actions, ours.spec.horizon) == (Discrete(5), 20)
    env = ours.make(ours.named_task({"goal_x": 0.1, "goal_y": 0.0}), 1, torch_rng(0, "env"))
    steps = [env.step(torch.tensor([[action]])) for action in [1] + 19 * [0]]
    assert [float(step.reward) for step in steps] == [0.0] * 20
    assert not any(bool(step.terminated) for step in steps)
    assert [bool(step.truncated) for step in steps] == [False] * 19 + [True]
    by_hand = -(0.05 + 18 * 0.05 + 0.15)
    assert float(ours.optimum(ours.named_task({"goal_x": 0.25, "goal_y": 0.0}))) == pytest.approx(by_hand)


def test_continuous_navigation_is_worth_a_straight_walk(float64):
    ours = family("navigation_2d_continuous")
    by_hand = -sum(np.hypot(max(0.25 - 0.1 * t, 0), max(0.1 - 0.1 * t, 0)) for t in range(1, 101))
    assert float(ours.optimum(ours.named_task({"goal_x": -0.25, "goal_y": 0.1}))) == pytest.approx(by_hand)
    just = ours.named_task({"goal_x": 0.109, "goal_y": 0.0})
    assert float(ours.optimum(just)) == pytest.approx(-0.009), "near enough after one step: the episode ends"
    for split in ("train", "ood"):
        tasks = ours.sample_tasks(200, split, numpy_rng(0, "tasks", split))
        target = torch.stack([tasks["goal_x"], tasks["goal_y"]], -1)
        assert torch.allclose(straight(ours, tasks, target), ours.optimum(tasks))


def test_point_target_by_hand(float64):
    ours = family("point_target")
    steps = walk(ours, ours.named_task({"target_0": 1.5, "target_1": -2.0}), [[1.0, 0.5], [7.0, -0.5], [-0.5, -9.0]])
    assert [step.obs.flatten().tolist() for step in steps] == [[1.0, 0.5], [2.0, 0.0], [1.5, -1.0]]
    assert [float(step.reward) for step in steps] == [-3.0, -2.5, -1.0]


def test_point_target_ends_outside():
    ours = family("point_target")
    steps = walk(ours, ours.named_task({}), [[0.0, -1.0]] * 7)
    assert [bool(step.terminated) for step in steps] == [False] * 5 + [True, False], "5 is still inside, 6 is not"
    assert steps[5].next_obs.flatten().tolist() == [0, -6]
    assert steps[5].obs.flatten().tolist() == [0, 0]


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_point_target_is_worth_a_straight_walk(dimensions, float64):
    ours = family("point_target", f"env.dimensions={dimensions}")
    for split in ("train", "ood"):
        tasks = ours.sample_tasks(200, split, numpy_rng(0, "tasks", split))
        assert list(tasks) == [f"target_{i}" for i in range(dimensions)]
        assert torch.allclose(straight(ours, tasks, ours.target(tasks)), ours.optimum(tasks))
    ours.make(tasks, 1, torch_rng(0, "env")).render()


def test_point_target_optimum_by_hand():
    ours = family("point_target")
    task = ours.named_task({"target_0": 2.5, "target_1": -1.0})
    assert float(ours.optimum(task)) == -(1.5 + 0.5)
    short = family("point_target", "env.horizon=1")
    assert float(short.optimum(task)) == -1.5


def test_targets_out_of_reach_are_refused():
    with pytest.raises(UserError, match="where episodes end"):
        family("point_target", "env.ood_target=[-6.0,6.0]")
    with pytest.raises(UserError, match="must contain"):
        family("point_target", "env.ood_target=[-1.0,1.0]")
    with pytest.raises(ValueError, match="target_1 must be within"):
        family("point_target").named_task({"target_1": 5.5})

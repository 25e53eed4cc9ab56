"""A scrambled family against the family itself: distances, steps, rewards, rows and tables."""

import pytest
import torch
from conftest import compose_train, compose_values, load

from metarl_cli.cli.listing import _parameter_rows, varied
from metarl_cli.errors import UserError
from metarl_cli.seeding import numpy_rng, torch_rng


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def scrambled(of: str, **more):
    values = {"module": "scrambled", "family": compose_values("train", [f"env={of}"])["env"], "obs_scale": None}
    module, config = load("env", values | {"reward_scale": [0.5, 1.5]} | more)
    return module.Family(config)


@pytest.mark.parametrize("of", ["cartpole_family", "navigation_2d", "pendulum_family", "acrobot_family", "two_link_arm"])
def test_a_scrambled_environment_steps_like_its_base(of, float64):
    """Its observations are turned, its actions permuted and its rewards rescaled, by maps that are undone here."""
    ours = scrambled(of)
    task = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    env, base = (f.make(t, 4, torch_rng(0, "env")) for f, t in ((ours, task), (ours.base, ours.theirs(task))))
    turn, wiring = ours.maps(task)
    same = torch.eye(ours.size).expand(3, -1, -1)
    torch.testing.assert_close(turn @ turn.mT, same, msg="orthogonal")
    assert (wiring.abs().sum(1) == 1).all()
    assert (wiring.abs().sum(2) == 1).all()
    scale, act = torch.tensor(ours.obs_scale), torch_rng(0, "act")
    for _ in range(60):
        action = ours.spec.actions.random(env.obs, act)
        if action.dim() == 3:  # the bounds are symmetric
            own = action @ wiring
        else:
            own = torch.stack([row[a].argmax(-1) for row, a in zip(wiring, action, strict=True)])
        step, expected = env.step(action), base.step(own)
        torch.testing.assert_close((step.next_obs @ turn.mT) * scale, expected.next_obs)
        torch.testing.assert_close((env.obs @ turn.mT) * scale, base.obs)
        torch.testing.assert_close(step.reward, expected.reward * task["reward_scale"][:, None])
        assert torch.equal(step.terminated, expected.terminated)
        assert torch.equal(step.truncated, expected.truncated)
        distances = torch.cdist(expected.next_obs / scale, expected.next_obs / scale)
        torch.testing.assert_close(torch.cdist(step.next_obs, step.next_obs), distances, atol=1e-6, rtol=1e-6)


def test_no_scramble_is_the_family_itself():
    ours, base = family("scrambled_cartpole"), family("cartpole_family")
    env, other = (f.make(f.named_task({"gravity": 12.0}), 2, torch_rng(0, "env")) for f in (ours, base))
    for action in (0, 1, 1):
        step, expected = (e.step(torch.full((1, 2), action)) for e in (env, other))
        assert torch.equal(step.reward, expected.reward)
        torch.testing.assert_close(step.next_obs * torch.tensor(ours.obs_scale), expected.next_obs)


def test_actions_are_permuted_and_observations_turned_anew_for_every_task():
    ours = family("scrambled_navigation")
    turn, wiring = ours.maps(ours.sample_tasks(600, "train", numpy_rng(0, "tasks")))
    assert len(wiring.argmax(-1).unique(dim=0)) > 110, "nearly all of the 120 orders of five moves"
    angle = torch.atan2(turn[:, 0, 1], turn[:, 0, 0])
    assert len(angle.unique()) > 590
    assert 0.4 < float((torch.linalg.det(turn) > 0).float().mean()) < 0.6, "turned, or mirrored and turned"
    assert float(angle.sin().mean().abs()) < 0.1


def test_rows_are_dropped_with_their_maps():
    ours, rows = family("scrambled_cartpole"), torch.tensor([True, False, True])
    task = ours.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    env, alone = (ours.make(task, 2, torch_rng(0, "env")) for _ in range(2))
    env.select_rows(rows)
    action = torch.tensor([[0, 1], [1, 1], [1, 0]])
    step, expected = env.step(action[rows]), alone.step(action)
    torch.testing.assert_close(step.next_obs, expected.next_obs[rows])
    assert torch.equal(step.reward, expected.reward[rows])


def test_what_is_known_of_a_scrambled_task():
    ours = family("scrambled_navigation")
    task = ours.named_task({"goal_x": 0.5, "goal_y": -0.5, "reward_scale": 1.5})
    nothing = [*torch.eye(2).flatten().tolist(), *torch.eye(5).flatten().tolist()]
    assert ours.knowledge(task).tolist() == [pytest.approx([*nothing, 1, 1, -1])]
    assert float(ours.optimum(task)) == pytest.approx(1.5 * float(ours.base.optimum(ours.theirs(task))))
    cartpole = family("scrambled_cartpole")
    assert cartpole.solved(cartpole.named_task({"reward_scale": 0.5})).tolist() == [0.5 * 475]
    assert cartpole.rule(None) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scramble": 0.5}, "scramble must be a whole number from 0 to 16777215, got 0.5"),
        ({"reward_scale": 0.0}, "reward_scale must be above 0"),
        ({"gravty": 9.0}, "no such task parameter: gravty"),
    ],
)
def test_named_tasks_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        family("scrambled_cartpole").named_task(values)


def test_what_no_training_task_has_is_said_of_both():
    said = family("scrambled_cartpole").untrained({"gravity": 30.0, "reward_scale": 2.0, "scramble": 0.0})
    assert [text.split(" is ")[0] for text in said] == ["gravity=30", "reward_scale=2", "scramble=0"]
    assert family("scrambled_cartpole").untrained({"gravity": 10.0, "scramble": 7.0}) == []


@pytest.mark.parametrize(
    ("of", "more", "message"),
    [
        ("classic_mix", {}, "only observations in a row of numbers"),
        ("cartpole_family", {"obs_scale": [1.0, 2.0]}, "obs_scale: 2 sizes for 4 entries"),
        ("cartpole_family", {"reward_scale": [1.0, 0.5]}, "reward_scale must be"),
        ("scrambled_cartpole", {}, "it has a parameter reward_scale already"),
    ],
)
def test_what_cannot_be_scrambled_is_refused(of, more, message):
    with pytest.raises(ValueError, match=message):
        scrambled(of, **more)


def test_errors_of_the_family_name_its_key():
    with pytest.raises(UserError, match=r"env\.family\.horizon=-1: must be"):
        family("scrambled_cartpole", "env.family.horizon=-1")


def test_the_list_shows_the_parameters_of_the_family_and_its_own():
    values = compose_values("train", ["env=scrambled_cartpole"])["env"]
    assert varied(values)["gravity"] == ("[4.9, 19.6]", "[2.5, 25]")
    rows = {str(row[0]): str(row[2]) for row in _parameter_rows(values, family("scrambled_cartpole"))}
    assert (rows["gravity"], rows["scramble"], rows["reward_scale"]) == ("[4.9, 19.6]", "", "[0.5, 1.5]")

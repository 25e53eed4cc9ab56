"""Families side by side: what each row does equals its own family alone."""

import pytest
import torch
from conftest import compose_train, compose_values, load, tiny

from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.adaptation.memory import collect_trials
from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.evaluation.curves import metrics
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.statistics import iqm
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.interfaces import Transitions
from metarl_cli.learners.dqn import DQN
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def test_drawing_tasks_checks_no_nominal_one_anew(monkeypatch):
    """A simulator is built for such a check."""
    mix = family("classic_mix")
    for member in mix.members:
        monkeypatch.setattr(member, "named_task", None)
    assert len(mix.sample_tasks(4, "train", numpy_rng(0, "tasks"))["family"]) == 4


def test_every_row_equals_its_own_family():
    mix, alone = family("classic_mix"), [family("cartpole_family"), family("mountain_car_family")]
    task = mix.sample_tasks(6, "train", numpy_rng(0, "tasks"))
    env = mix.make(task, 3, torch_rng(0, "env"))
    rng = torch_rng(0, "env")  # the families draw from one stream, one after the other
    parts = zip(alone, mix.families, mix.rows(task), strict=True)
    envs = [one.make(mix.part(task, name, rows), 3, rng) for one, name, rows in parts]
    act = torch_rng(0, "act")
    for _ in range(250):
        action = mix.spec.actions.random(env.obs, act)
        step = env.step(action)
        for one, rows, single in zip(alone, mix.rows(task), envs, strict=True):
            expected = single.step(action[rows])
            scale = torch.tensor(one.spec.obs_scale) if one.spec.obs_scale else torch.ones(())
            size = one.spec.obs_shape[0]
            assert torch.equal(step.next_obs[rows][..., :size], expected.next_obs / scale)
            assert torch.equal(step.obs[rows][..., :size], expected.obs / scale)
            assert not step.obs[rows][..., size:4].any(), "padding"
            legal = torch.tensor([1.0] * one.spec.actions.n + [0.0] * (3 - one.spec.actions.n))
            assert (step.obs[rows][..., 4:] == legal).all()
            for name in ("reward", "terminated", "truncated"):
                assert torch.equal(getattr(step, name)[rows], getattr(expected, name))


def test_rows_take_turns_whatever_their_number():
    mix = family("classic_mix")
    many, few = (mix.sample_tasks(num, "test", numpy_rng(0, "tasks", "test")) for num in (9, 4))
    assert many["family"].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert all(torch.equal(many[key][:4], few[key]) for key in many)


def test_no_row_takes_an_action_it_does_not_have():
    parts = build(compose_train("algo=maml_dqn", "env=classic_mix", "algo.tasks=8", "hardware=cpu"))
    learner, mix = parts.algorithm.learner, parts.family
    assert isinstance(learner, DQN)
    task = mix.sample_tasks(8, "train", numpy_rng(0, "tasks"))
    env = mix.make(task, 50, torch_rng(0, "env"))
    params = {k: v.expand(8, *v.shape) for k, v in learner.init(torch_rng(0, "init")).items()}
    params["head.bias"] = torch.tensor([0.0, 0.0, 5.0]).expand(8, 3)  # the third action looks best
    cartpoles = task["family"] == 0
    for epsilon in (0.0, 0.5, 1.0):
        policy = EpsilonGreedy(NetworkPolicy(learner, params), learner.actions, epsilon)
        action, _ = policy.act(policy.start(env.obs.shape[1], torch_rng(0, "act")), env.obs)
        assert int(action[cartpoles].max()) <= 1
        assert int(action[~cartpoles].max()) == 2
    one = {k: v[0] for k, v in params.items()}
    batch_obs = env.obs[cartpoles][0][None]  # [1, N, O]
    nothing, no = torch.zeros(1, 50), torch.zeros(1, 50, dtype=torch.bool)
    experience = Transitions(batch_obs, nothing.long(), nothing, batch_obs, no, no, nothing + 1)
    target = learner.prepare(one, one, experience, 0.5).signal["target"]
    legal = learner.network(one, batch_obs)[..., :2].max(-1).values
    torch.testing.assert_close(target, 0.5 * legal, msg="nor do the targets bootstrap from it")


def test_named_task_belongs_to_the_family_it_names():
    mix = family("classic_mix")
    task = mix.named_task({"mountain_car_family.gravity": 0.003})
    assert (float(task["family"]), float(task["mountain_car_family.gravity"])) == (1, pytest.approx(0.003))
    assert float(mix.named_task({})["family"]) == 0
    assert float(mix.named_task({"family": 1.0})["family"]) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gravity": 9.0}, "no such task parameter: gravity; known: family, cartpole_family"),
        ({"family": 2.0}, "family must be one of 0 to 1"),
        ({"cartpole_family.gravity": 9.0, "mountain_car_family.gravity": 0.003}, "one task belongs to one family"),
        ({"cartpole_family.gravty": 9.0}, "no such task parameter: gravty"),
        ({"cartpole_family.masscart": -1.0}, "masscart must be above 0"),
    ],
)
def test_named_task_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        family("classic_mix").named_task(values)


def test_vector_actions_are_a_grid_in_a_mix():
    config = compose_train("env=pendulum_family").env
    module, mixed = load(
        "env", {"module": "mix", "bins": 5, "families": {"a": config, "b": compose_train("env=cartpole_v1").env}}
    )
    mix = module.Family(mixed)
    assert mix.spec.actions == Discrete(5, masked=True)
    task = mix.sample_tasks(2, "train", numpy_rng(0, "tasks"))
    alone = family("pendulum_family")
    one = alone.make(mix.part(task, "a", torch.tensor([0])), 5, torch_rng(0, "env"))
    env = mix.make(task, 5, torch_rng(0, "env"))
    step = env.step(torch.stack([torch.arange(5), torch.zeros(5, dtype=torch.long)]))
    expected = one.step(torch.linspace(-2, 2, 5)[None, :, None])
    torch.testing.assert_close(step.reward[0], expected.reward[0])


def test_returns_are_reported_for_each_family():
    mix = family("classic_mix")
    task = mix.sample_tasks(7, "test", numpy_rng(0, "tasks"))
    curve = Evaluator(mix, task, 3, 0, "test").random()
    assert list(curve.groups) == ["cartpole_family", "mountain_car_family"]
    for number, points in enumerate(curve.groups.values()):
        assert points[0].value == pytest.approx(float(iqm(curve.returns[0][:, number::2].mean(0))))
    assert curve.groups["cartpole_family"][0].value > 0 > curve.groups["mountain_car_family"][0].value
    assert curve.points[0].value == pytest.approx(sum(points[0].value for points in curve.groups.values()) / 2)
    assert metrics(curve, "test")["test/return_after_mountain_car_family"] == curve.groups["mountain_car_family"][0].value


@pytest.mark.parametrize("split", ["test", "ood"])
def test_fewer_tasks_than_families(split):
    mix = family("classic_mix")
    one = mix.sample_tasks(1, split, numpy_rng(0, "tasks"))
    three = mix.sample_tasks(3, split, numpy_rng(0, "tasks"))
    assert all(torch.equal(one[key], three[key][:1]) for key in one)


def test_errors_of_a_member_name_its_key():
    values = compose_values("train", ["env=classic_mix", "env.families.cartpole_family.horizon=-1"])
    with pytest.raises(ConfigError, match=r"env\.families\.cartpole_family\.horizon=-1: must be"):
        validate(TrainConfig, values)


def test_every_member_has_its_own_horizon():
    mix = family("classic_mix", "env.families.cartpole_family.horizon=300", "env.families.mountain_car_family.horizon=50")
    task = mix.sample_tasks(5, "train", numpy_rng(0, "tasks"))
    assert mix.horizons(task).tolist() == [300, 50, 300, 50, 300]
    assert mix.spec.horizon == 300
    assert mix.families["cartpole_family"].horizons(mix.part(task, "cartpole_family", torch.tensor([0]))).tolist() == [300]


@pytest.mark.parametrize("algo", ["rl2", "rl2_dqn"])
def test_a_memory_is_told_the_share_of_its_own_horizon(algo):
    """In the last step of an episode that is cut off, (H - 1) / H of it have passed, in every member."""
    small = ["env.families.cartpole_family.horizon=30", "env.families.mountain_car_family.horizon=12", "algo.inputs.clock=true"]
    algorithm = build(
        compose_train(f"algo={algo}", *(o for o in tiny(algo) if "env." not in o), "env=classic_mix", *small, "algo.tasks=4")
    ).algorithm
    horizons = algorithm.family.horizons(algorithm.task)
    policy = algorithm.policy({k: v.detach() for k, v in algorithm.params.items()}, horizons, 2)
    rngs = torch_rng(0, "env"), torch_rng(0, "act")
    trials = collect_trials(algorithm.family, algorithm.task, policy, 2, 2, *rngs, 6)
    cut = trials.ended & ~trials.terminated & (trials.weight > 0)
    rows = horizons.repeat_interleave(2).expand_as(trials.reward)
    assert cut[:, 2:4].any(), "cars run out of time"
    torch.testing.assert_close(trials.clock[..., 0][cut], ((rows - 1) / rows)[cut])
    if algo == "rl2_dqn":
        ended = trials.terminated & (trials.weight > 0)
        left = (rows * (1 - trials.clock[..., 0]))[ended]
        discount, gamma = algorithm.discounts(trials, rows[0])[ended], algorithm.config.dqn.gamma
        assert ended[:, :2].any(), "poles fall"
        follows = discount > 0
        torch.testing.assert_close(discount[follows], gamma ** left[follows])

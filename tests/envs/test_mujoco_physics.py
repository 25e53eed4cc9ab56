"""What tasks multiply of MuJoCo's bodies: sizes of links, single entries, and where a body then is."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_train, flat

from metarl_cli.envs.mujoco.bodies import BODIES
from metarl_cli.envs.tasks import LogUniform
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

mujoco = pytest.importorskip("mujoco")
robots = pytest.importorskip("robots")
family, shipped, reference, IDS = robots.family, robots.shipped, robots.reference, robots.IDS
gymnasium = robots.gymnasium
PEARL = {
    "walker_rand_params": (7, 7, 6, 5),
    "hopper_rand_params": (4, 4, 3, 2),
}  # bodies twice, damped joints, shapes that touch


def model_of(ours, **factors):
    (model,) = ours.models_of(ours.named_task(factors))
    return model


def compiled(body, factor):
    """A body's model compiled by MuJoCo from a description with all lengths multiplied."""
    file = BODIES[body].file
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets" / file))
    for link in spec.bodies[1:]:
        if link.parent.name != "world":
            link.pos *= factor
        for shape in link.geoms:
            shape.size, shape.pos, shape.fromto = shape.size * factor, shape.pos * factor, shape.fromto * factor
        for joint in link.joints:
            joint.pos *= factor
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*settotalmass")  # in the half-cheetah's description
        return spec.compile()


@pytest.mark.parametrize("body", IDS)
def test_a_size_is_what_mujoco_compiles_of_longer_links(body):
    mine, theirs = model_of(family(body), size=1.25), compiled(body, 1.25)
    for name in ("body_pos", "body_ipos", "jnt_pos", "geom_pos", "geom_size", "geom_rbound", "geom_aabb", "bvh_aabb"):
        links = mine.body_rootid[mine.geom_bodyid] > 0 if name.startswith("geom") else slice(None)  # the ground moves
        a, b = getattr(mine, name)[links], getattr(theirs, name)[links]
        if name == "bvh_aabb":
            rows = mine.body_bvhnum[0]
            a, b = a[rows:], b[rows:]
        assert np.allclose(a, b, rtol=1e-6, atol=1e-12), name
    assert np.array_equal(mine.body_mass, family(body).models.nominal.body_mass), "masses stay"
    moment = theirs.body_inertia[1:] * (mine.body_mass[1:] / theirs.body_mass[1:])[:, None]
    assert np.allclose(mine.body_inertia[1:], moment, rtol=1e-5)


@pytest.mark.parametrize("body", ["half_cheetah", "ant", "hopper", "walker2d", "humanoid"])
@pytest.mark.parametrize("factors", [{"size": 0.7}, {"size": 1.3}, {"size_1": 1.2, "size_3": 0.8}])
def test_the_ground_is_as_far_below_a_body_of_another_size(body, factors):
    """Told by MuJoCo's distance of the ground from each shape."""
    ours, gaps = family(body), []
    for model in (ours.models.nominal, model_of(ours, **factors)):
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        shapes = [i for i in range(model.ngeom) if model.geom_bodyid[i]]
        (ground,) = (i for i in range(model.ngeom) if not model.geom_bodyid[i])
        gaps.append(min(mujoco.mj_geomDistance(model, data, ground, i, 10.0, None) for i in shapes))
    assert gaps[1] == pytest.approx(gaps[0], abs=1e-6)


def test_a_longer_link_moves_what_hangs_on_it():
    """The hopper's thigh is 0.45 m long and its leg 0.5; the foot's joint is where the leg ends."""
    ours = family("hopper")
    data = mujoco.MjData(model := model_of(ours, size_2=1.2, size_3=0.5))
    mujoco.mj_forward(model, data)
    hip, knee, ankle = (data.xanchor[i] for i in (3, 4, 5))
    assert (hip - knee).tolist() == pytest.approx([0, 0, 1.2 * 0.45])
    assert (knee - ankle).tolist() == pytest.approx([0, 0, 0.5 * 0.5])
    assert data.xpos[1].tolist() == pytest.approx([0, 0, 1.25]), "the torso is where it was"


def test_an_arm_reaches_as_far_as_its_links(float64):
    ours = family("reacher", ranges={"size_1": [0.5, 2.0], "size_2": [0.5, 2.0]})
    env = ours.make(ours.sample_tasks(3, "train", numpy_rng(0, "tasks")), 2, torch_rng(0, "env"))
    for _ in range(5):
        env.step(ours.spec.actions.random(env.obs, torch_rng(1, "act")))
    place = ours.place(env.models, env.state)
    for i, model in enumerate(env.models):
        data = mujoco.MjData(model)
        for j in range(2):
            data.qpos[:] = ours.position(env.state)[i, j].numpy()
            mujoco.mj_kinematics(model, data)
            assert np.allclose(place[i, j].numpy(), data.body("fingertip").xpos[:2], rtol=0, atol=1e-12)
    assert len({round(float(model.body_pos[2, 0]), 6) for model in env.models}) == 3


def test_a_humanoid_is_where_its_centre_of_mass_is(float64):
    """As Gymnasium computes it, for bodies of varied masses."""
    from gymnasium.envs.mujoco.humanoid_v5 import mass_center

    ours = family("humanoid", ranges={"mass_9": [0.5, 5.0], "size": [0.8, 1.2]})
    env = ours.make(ours.sample_tasks(3, "train", numpy_rng(0, "tasks")), 2, torch_rng(0, "env"))
    place = ours.place(env.models, env.state)
    for i, model in enumerate(env.models):
        data = mujoco.MjData(model)
        for j in range(2):
            data.qpos[:] = ours.position(env.state)[i, j].numpy()
            mujoco.mj_forward(model, data)
            assert np.allclose(place[i, j].numpy(), mass_center(model, data), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PEARL)
def test_pearls_families_draw_one_factor_for_each_entry(name):
    ours = shipped(name)
    varied = {
        kind: [n for n in ours.distributions if n.startswith(f"{kind}_")] for kind in ("mass", "inertia", "damping", "friction")
    }
    assert tuple(map(len, varied.values())) == PEARL[name]
    assert sum(PEARL[name]) == len(ours.distributions)
    tasks = ours.sample_tasks(4000, "train", numpy_rng(0, "tasks"))
    for kind, names in varied.items():
        base = 1.3 if kind == "damping" else 1.5
        drawn = torch.stack([tasks[n] for n in names]).double().log() / np.log(base)
        assert drawn.abs().max() <= 3 + 1e-5
        assert abs(float(drawn.mean())) < 0.1
        assert float(drawn.std()) == pytest.approx(3**0.5, rel=0.05), "uniform in [-3, 3]"
    task = {n: float(value[0]) for n, value in tasks.items()}
    model, nominal = model_of(ours, **task), ours.models.nominal
    for i in range(1, model.nbody):
        assert model.body_mass[i] == pytest.approx(nominal.body_mass[i] * task[f"mass_{i}"])
        both = task[f"mass_{i}"] * task[f"inertia_{i}"]
        assert model.body_inertia[i] == pytest.approx(nominal.body_inertia[i] * both)
    for i in range(model.ngeom):
        assert model.geom_friction[i] == pytest.approx(nominal.geom_friction[i] * task.get(f"friction_{i}", 1.0))
    for i in range(3, model.nv):
        assert model.dof_damping[i] == pytest.approx(nominal.dof_damping[i] * task[f"damping_{i}"])
    assert not model.dof_damping[:3].any()


@pytest.mark.parametrize("name", ["walker_sizes", "hopper_rand_params"])
def test_tasks_of_entries_are_reproduced_and_resumed(name):
    ours, again = shipped(name), shipped(name)
    task = ours.sample_tasks(3, "train", numpy_rng(3, "tasks"))
    for key, value in again.sample_tasks(3, "train", numpy_rng(3, "tasks")).items():
        assert torch.equal(task[key], value)
    env, rng = ours.make(task, 2, torch_rng(0, "env")), torch_rng(0, "act")
    for _ in range(20):
        env.step(ours.spec.actions.random(env.obs, rng))
    other = again.make(task, 2, torch_rng(5, "env"))
    other.load_state_dict(env.state_dict())
    for _ in range(30):
        action = ours.spec.actions.random(env.obs, rng)
        for a, b in zip(env.step(action), other.step(action), strict=True):
            assert torch.equal(a, b)


def test_any_task_may_name_any_factor():
    """Those that no task of the family varies leave its tasks and their random numbers as they were."""
    ours = shipped("half_cheetah_vel")
    assert list(ours.parameters) == ["velocity", "gravity", "mass", "friction", "damping", "strength"]
    task = ours.named_task({"size_2": 1.3, "velocity": 2.0})
    (model,) = ours.models_of(task)
    assert model.geom_size[3, 1] == pytest.approx(1.3 * ours.models.nominal.geom_size[3, 1])
    ours.make(task, 1, torch_rng(0, "env")).step(torch.zeros(1, 1, 6))
    assert [line.partition(" of the training")[0] for line in ours.untrained({"size_2": 1.3})] == ["size_2=1.3 is outside {1}"]
    with pytest.raises(ValueError, match="size_2 must be above 0"):
        ours.named_task({"size_2": -1.0})
    with pytest.raises(ValueError, match="no such task parameter: size_0; size has the entries 1, 2"):
        ours.named_task({"size_0": 1.5})


def test_the_logarithm_is_uniform():
    distribution = LogUniform(0.25, 4.0)
    assert distribution.sample(np.array([0.0, 0.25, 0.5, 0.75])).tolist() == pytest.approx([0.25, 0.5, 1.0, 2.0])
    assert distribution.contains(np.array([0.24, 0.25, 4.0, 4.1])).tolist() == [False, True, True, False]
    assert distribution.standard(torch.tensor([0.25, 1.0, 4.0, 16.0]))[:, 0].tolist() == pytest.approx([-1, 0, 1, 2])
    assert str(distribution) == "log [0.25, 4]"
    assert not distribution.finite


SMALL = {
    "robust_pg": ["algo.rollouts=2", "algo.steps=4"],
    "oracle_pg": ["algo.rollouts=2", "algo.steps=4"],
    "maml_pg": ["algo.inner.support.rollouts=2", "algo.inner.support.steps=4", "algo.query=2"],
}


@pytest.mark.parametrize("algo", SMALL)
@pytest.mark.parametrize("name", ["reacher_goal", "humanoid_dir", "walker_sizes", "walker_rand_params", "hopper_rand_params"])
def test_policies_learn_on_them(name, algo):
    """Two iterations of policies that cannot know the task, are given it, or adapt to it: weights move, and stay finite."""
    made = build(
        compose_train(f"algo={algo}", f"env={name}", "algo.tasks=3", "learner.network.hidden=[8]", *SMALL[algo])
    ).algorithm
    before = torch.cat([value.flatten().double() for value in flat(made.weights())])
    for _ in range(2):
        metrics = made.train_step()
    after = torch.cat([value.flatten().double() for value in flat(made.weights())])
    assert all(np.isfinite(value) for value in metrics.values())
    assert after.isfinite().all()
    assert not torch.equal(before, after)

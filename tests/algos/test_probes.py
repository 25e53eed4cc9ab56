"""Probe environments with known answers: what each algorithm must be able to learn, in seconds."""

import pytest
import torch
from conftest import compose_train, load, slow_if
from probes import Buttons, Corridor

from metarl_cli.algos import dqn
from metarl_cli.envs.native import NativeFamily
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.interfaces import Budget, Context
from metarl_cli.learners.dqn import DQN
from metarl_cli.seeding import numpy_rng, torch_rng

CPU = torch.device("cpu")


def parts(algo: str, family: NativeFamily, *overrides: str, iterations: int = 30, seed: int = 0):
    config = compose_train(f"algo={algo}", "learner.network.hidden=[32]", *overrides)
    learner = DQN(load("learner", config.learner)[1], family.spec)
    module, values = load("algo", config.algo)
    algorithm = module.Algo(values, Context(family, learner, iterations, seed, CPU))
    for _ in range(iterations):
        algorithm.train_step()
    return algorithm


MAML = [
    "learner.gamma=0.5",
    "learner.reward_scale=1",
    "algo.tasks=16",
    "algo.inner.support.rollouts=4",
    "algo.inner.support.steps=4",
    "algo.query.steps=4",
    "algo.query.epsilon_iterations=10",
    "algo.outer.tasks=8",
    "algo.outer.batch=32",
]


SEEDS = [("maml_dqn", 0), ("maml_dqn", 1), ("maml_dqn", 2), ("metasgd_dqn", 0), ("fomaml_dqn", 0), ("anil_dqn", 0)]
SEEDS += [("learned_loss_dqn", 0)]


@pytest.mark.parametrize(("algo", "seed"), slow_if(SEEDS, lambda case: case != ("maml_dqn", 0)))
def test_one_gradient_step_tells_the_button(algo, seed):
    family = Buttons()
    algorithm = parts(algo, family, *MAML, seed=seed)
    tasks = family.sample_tasks(40, "test", numpy_rng(seed, "tasks", "test"))
    before, after = Evaluator(family, tasks, 1, seed, "test").curve(algorithm, Budget(1)).returns.mean(axis=(1, 2))
    assert abs(before) < 2, "without adaptation the sides cancel"
    assert after > 3.5, "after one step the right button, every time: 4"


def test_pretraining_cannot_tell_the_button():
    """What the test above measures is adaptation: a network for all tasks, without it, gets nothing."""
    family = Buttons()
    algorithm = parts("pretrain_dqn", family, *MAML)
    tasks = family.sample_tasks(40, "test", numpy_rng(0, "tasks", "test"))
    before = Evaluator(family, tasks, 1, 0, "test").curve(algorithm, Budget(1)).returns[0].mean()
    assert abs(before) < 2


@pytest.mark.parametrize("double", [pytest.param(False, marks=pytest.mark.slow), True])
def test_dqn_learns_the_values_of_the_corridor(double):
    family = Corridor()
    overrides = ["learner.gamma=0.5", "learner.reward_scale=1", f"learner.double={double}", "algo.tasks=3", "algo.envs=4"]
    overrides += ["algo.epsilon=[1.0,0.5]", "algo.lr=0.005", "algo.target.every=20", "algo.target.polyak=1"]
    algorithm = parts("dqn", family, *overrides)
    assert isinstance(algorithm, dqn.IndependentDQN)
    assert algorithm.own_tasks
    params = next(algorithm.adapt(algorithm.task, Budget(), torch_rng(0, "adapt"))).policy.params
    cells = torch.tensor([0.0, 0.25, 0.5, 0.75])[:, None]
    right = 0.5 ** torch.tensor([3.0, 2.0, 1.0, 0.0])
    left = 0.5 * torch.tensor([right[0], right[0], right[1], right[2]])  # one step back, then as before
    for row in range(3):
        q = algorithm.learner.network({k: v[row] for k, v in params.items()}, cells)
        torch.testing.assert_close(q, torch.stack([left, right], 1), atol=0.04, rtol=0)

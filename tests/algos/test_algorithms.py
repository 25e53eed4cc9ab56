"""What every algorithm that learns must do, whatever it learns: each yaml of conf/algo."""

import copy
import math

import pytest
import torch
from conftest import algorithms, compose_train, fitting, flat, tiny, variants_slow

from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng


def built(algo, env="cartpole_family", *overrides):
    return build(compose_train(f"algo={algo}", f"env={fitting(algo, env)}", *tiny(algo), *overrides))


@pytest.mark.parametrize("algo", variants_slow(algorithms()))
@pytest.mark.parametrize("env", ["cartpole_family", pytest.param("navigation_2d", marks=pytest.mark.slow)])
def test_same_seed_same_bits_other_seed_other(algo, env):
    runs = [built(algo, env, f"seed={seed}").algorithm for seed in (0, 0, 1)]
    start = [x.clone() for x in flat(runs[0].weights())]
    for algorithm in runs:
        for _ in range(3):
            found = algorithm.train_step()
            assert all(isinstance(v, float) and math.isfinite(v) for v in found.values())
    first, again, other = (flat(algorithm.weights()) for algorithm in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, start, strict=True)), "training does something"


@pytest.mark.parametrize("algo", variants_slow(algorithms()))
def test_state_round_trip_goes_on_with_the_same_bits(algo):
    one, two = (built(algo).algorithm for _ in range(2))
    for _ in range(3):
        one.train_step()
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    found = [(one.train_step(), two.train_step()) for _ in range(3)]
    assert all(a == b for a, b in found)
    assert all(torch.equal(a, b) for a, b in zip(flat(one.state_dict()), flat(two.state_dict()), strict=True))


@pytest.mark.parametrize("algo", variants_slow(algorithms()))
def test_weights_are_all_that_is_needed_elsewhere(algo):
    one, two = (built(algo, "cartpole_family", f"seed={seed}").algorithm for seed in (0, 1))
    one.train_step()
    two.load_weights(copy.deepcopy(one.weights()))
    assert all(torch.equal(a, b) for a, b in zip(flat(one.weights()), flat(two.weights()), strict=True))


@pytest.mark.parametrize("algo", algorithms(by="memory"))
@pytest.mark.parametrize("env", ["cartpole_family", "navigation_2d"])
def test_trials_change_nothing_of_the_algorithm(algo, env):
    """Nor does one trial of another: the same chance, the same trial."""
    parts = built(algo, env)
    algorithm, family = parts.algorithm, parts.family
    assert algorithm.adapts_by == "memory"
    algorithm.train_step()
    before = [x.clone() for x in flat(algorithm.state_dict())]
    task = family.sample_tasks(5, "test", numpy_rng(0, "tasks"))

    adapted = next(algorithm.adapt(task, Budget(), torch_rng(0, "support")))

    def returns(greedy, seed):
        rngs = torch_rng(0, "env"), torch_rng(seed, "trial")
        return run_episodes(family, task, adapted.policy, 2, *rngs, adapted.episodes, greedy)[0]

    greedy = returns(True, 0)
    assert greedy.shape == (2, 5, 2)
    assert torch.equal(greedy, returns(True, 0))
    if adapted.policy.stochastic:
        assert torch.equal(returns(False, 0), returns(False, 0))
        assert not torch.equal(returns(False, 0), returns(False, 1))
        assert torch.equal(greedy, returns(True, 1)), "greedy actions need no chance"
    assert all(torch.equal(a, b) for a, b in zip(before, flat(algorithm.state_dict()), strict=True))

"""A trust-region step on functions whose curvature is known."""

import numpy as np
import pytest
import torch

from metarl_cli.networks.trust_region import TrustConfig, conjugate_gradients, flat, trust_region_step

CONFIG = TrustConfig(kl=0.01, products=10, damping=0.0, trials=15, shrink=0.8)


def matrix(size=6):
    root = np.random.default_rng(0).normal(size=(size, size))
    return torch.from_numpy(root @ root.T + np.eye(size))


def quadratic(curvature, scale=1.0):
    """Weights at 0 of a linear loss, the divergence ``scale / 2 x'Hx``, and what a step needs to know of them."""
    weights = [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    gradient = torch.arange(1.0, 7.0, dtype=torch.float64)

    def measure():
        moved = flat(weights)
        return float(gradient @ moved), float(scale * moved @ curvature @ moved / 2)

    return weights, gradient, lambda vector: curvature @ vector, measure


def test_conjugate_gradients_solve_in_as_many_steps_as_unknowns():
    curvature, right = matrix(), torch.arange(1.0, 7.0, dtype=torch.float64)
    found = conjugate_gradients(lambda v: curvature @ v, right, 6)
    assert torch.allclose(found, torch.linalg.solve(curvature, right), atol=1e-10)


def test_no_gradient_moves_nothing():
    assert not conjugate_gradients(lambda v: v, torch.zeros(3), 10).any()
    weights, gradient, product, measure = quadratic(matrix())
    assert trust_region_step(weights, torch.zeros_like(gradient), product, measure, CONFIG) == (0.0, 0)
    assert not flat(weights).any()


def test_the_first_trial_is_the_natural_gradient_at_the_bound():
    curvature = matrix()
    weights, gradient, product, measure = quadratic(curvature, scale=1 - 1e-9)  # rounding does not decide about the bound
    divergence, trial = trust_region_step(weights, gradient, product, measure, CONFIG)
    direction = torch.linalg.solve(curvature, gradient)
    length = (2 * CONFIG.kl / (direction @ gradient)).sqrt()
    assert trial == 1
    assert divergence == pytest.approx(CONFIG.kl, rel=1e-6)
    assert torch.allclose(flat(weights), -length * direction, atol=1e-10)
    assert measure()[0] < 0


def test_the_step_is_shortened_until_it_is_within_the_bound():
    weights, gradient, product, measure = quadratic(matrix(), scale=3.0)
    divergence, trial = trust_region_step(weights, gradient, product, measure, CONFIG)
    assert CONFIG.kl * 0.8**2 < divergence <= CONFIG.kl
    assert trial == 4  # 3 x 0.8^(2 x 3) is the first below 1


def test_a_step_that_helps_nowhere_leaves_the_very_bits():
    weights, gradient, product, measure = quadratic(matrix())
    with torch.no_grad():
        for weight in weights:
            weight += torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
    before = [weight.clone() for weight in weights]
    found = trust_region_step(weights, -gradient, product, measure, CONFIG)
    assert found == (0.0, 0)
    assert all(torch.equal(one, other) for one, other in zip(before, weights, strict=True))

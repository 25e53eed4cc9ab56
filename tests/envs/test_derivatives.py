"""Dynamics that take derivatives by autograd, and those that do not, whose steps autograd does not see."""

import importlib
import pkgutil

import pytest
import torch

from metarl_cli import envs
from metarl_cli.envs.native import NativeFamily
from metarl_cli.spaces import Discrete, Spec


def potential(x):
    return (1 - torch.cos(x)).sum()


def by_grad(x):
    with torch.enable_grad():
        moving = x.detach().requires_grad_()
        return torch.autograd.grad(potential(moving), moving)[0]


class Well(NativeFamily):
    """A mass in a potential: the force is its derivative."""

    parameters = {"stiffness": 1.0}
    spec = Spec(obs_shape=(2,), actions=Discrete(2), horizon=20)

    def __init__(self, derivative):
        self.derivative = derivative

    def initial_state(self, shape, like, rng):
        return torch.ones(*shape, 2, dtype=like.dtype)

    def dynamics(self, state, action, task, rng):
        x, v = state.unbind(-1)
        v = v - 0.1 * task["stiffness"] * self.derivative(x)
        x = x + 0.1 * v
        return torch.stack([x, v], -1), -x.abs(), torch.zeros_like(x, dtype=torch.bool)


@pytest.mark.parametrize(
    "derivative",
    [by_grad, torch.func.grad(potential), lambda x: torch.autograd.functional.jacobian(potential, x)],
    ids=["autograd.grad", "func.grad", "functional.jacobian"],
)
@torch.no_grad()
def test_dynamics_may_take_derivatives(derivative):
    task = {"stiffness": torch.ones(2, dtype=torch.float64)}
    env, truth = (Well(how).make(task, 3, torch.Generator()) for how in (derivative, torch.sin))
    for _ in range(5):
        found, known = (each.step(torch.zeros(2, 3, dtype=torch.long)).next_obs for each in (env, truth))
    torch.testing.assert_close(found, known, rtol=0, atol=1e-12)


def test_families_of_the_package_take_none():
    modules = [importlib.import_module(f"{envs.__name__}.{each.name}") for each in pkgutil.iter_modules(envs.__path__)]
    kinds = [module.Family for module in modules if hasattr(module, "Family") and issubclass(module.Family, NativeFamily)]
    assert len(kinds) > 15
    assert [kind.__name__ for kind in kinds if kind.differentiates] == []

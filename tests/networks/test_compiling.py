"""Compiled functions equal the plain ones, follow their arguments, and fall back in one line."""

import pytest
import torch
from conftest import compose_train, fitting, flat, slow_if, tiny

from metarl_cli.networks import compiling
from metarl_cli.networks.compiling import compiled
from metarl_cli.progress import listening
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Continuous


@pytest.fixture
def notes():
    """The lines that stay on the display."""
    lines: list[str] = []
    with listening(lambda text: None, lines.append):
        yield lines


@pytest.fixture
def traced(monkeypatch, notes):
    """Run what was traced as it is: compiling it takes long. The number of graphs, one for each call of the compiler."""
    graphs: list[object] = []
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_: graphs.append(graph) or graph)
    return graphs


VARIANTS = {
    "maml_dqn": [],
    "metasgd_dqn": [],
    "fomaml_dqn": [],
    "anil_dqn": [],
    "reptile_dqn": [],
    "pretrain_dqn": [],
    "maml_dqn, context": ["algo.inner.scope=context", "learner.network.context=2"],
    "learned_loss_dqn": [],
    "maml_dqn, every step": ["algo.inner.steps=2", "algo.outer.every_step=true"],
    "maml_dqn, fresh support": ["algo.inner.steps=2", "algo.inner.support.fresh=true"],
    "maml_dqn, Q(lambda)": ["algo.inner.returns.lambda=0.5"],
    "dqn": [],
    "oracle_dqn": [],
    "pearl_dqn": [],
    "pearl": ["learner.target_entropy=-1"],
}


def train(name: str, *overrides: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Train three iterations plain and three compiled; returns the weights of both."""
    algo = name.split(",")[0]
    small = [f"algo={algo}", f"env={fitting(algo)}", *tiny(algo), *VARIANTS.get(name, []), *overrides]
    algorithms = [build(compose_train(*small, f"hardware.compile={c}")).algorithm for c in ("false", "true")]
    for algorithm in algorithms:
        for _ in range(3):
            algorithm.train_step()
    plain, fast = (flat(algorithm.weights()) for algorithm in algorithms)
    assert any(
        not torch.equal(a, b) for a, b in zip(plain, flat(build(compose_train(*small)).algorithm.weights()), strict=True)
    )
    return plain, fast


def fixed(env: str) -> set[float]:
    """The numbers that never change: sizes of observations, 1 for what has none, and bounds of vectors."""
    spec = build(compose_train(f"env={env}", "hardware=cpu")).family.spec
    bounds = (*spec.actions.low, *spec.actions.high) if isinstance(spec.actions, Continuous) else ()
    return set(torch.tensor((1.0, *spec.obs_scale, *bounds)).tolist()) if spec.obs_scale or bounds else set()


@pytest.mark.parametrize("name", slow_if(VARIANTS, lambda name: name not in ("maml_dqn", "learned_loss_dqn", "dqn", "pearl")))
def test_the_graph_of_a_derivative_follows_the_weights(name, traced, notes, monkeypatch):
    monkeypatch.setattr("metarl_cli.envs.native.NativeFamily.compile", lambda self, compiler: None)
    plain, fast = train(name)
    assert (len(traced), notes) == (1, [])
    constants = [getattr(traced[0], node.target) for node in traced[0].graph.nodes if node.op == "get_attr"]
    found = {y for x in constants if x.numel() > 1 and x.dtype.is_floating_point for y in x.flatten().tolist()}
    assert found <= fixed(fitting(name.split(",")[0])), "weights have to be inputs"
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", slow_if(["es_dqn", "evo_dqn", "adrl"], lambda name: name != "es_dqn"))
def test_the_search_is_the_same_where_fitness_is_compiled(name, traced, notes):
    said: list[str] = []
    with listening(said.append, notes.append):
        for a, b in zip(*train(name), strict=True):
            torch.testing.assert_close(a, b)
    assert any(line.startswith("compiled the episodes of individuals") for line in said)
    assert not notes


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("maml_dqn", marks=pytest.mark.proof), "dqn"])
def test_compiled_code_follows_the_weights(name, notes):
    for a, b in zip(*train(name), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not notes


@pytest.mark.slow
def test_compiled_environments_step_as_plain_ones(notes):
    families = [
        build(compose_train("env=cartpole_family", "hardware=cpu", f"hardware.compile={c}")).family for c in (False, True)
    ]
    for num, envs in ((3, 2), (1, 5), (9, 11)):
        task = families[0].sample_tasks(num, "train", numpy_rng(0, "tasks"))
        plain, fast = (family.make(task, envs, torch_rng(0, "env")) for family in families)
        for t in range(40):
            action = torch.randint(2, plain.obs.shape[:2], generator=torch_rng(0, "action", str(t)))
            for a, b in zip(plain.step(action), fast.step(action), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            if t == 20 and num > 1:  # plain from here on
                plain.select_rows(torch.arange(num) > 0)
                fast.select_rows(torch.arange(num) > 0)
    assert not notes


def test_each_shape_has_a_graph_and_each_argument_a_place(traced):
    function = compiled(lambda x, rest: {"sum": x + rest[0], "product": [x * rest[0]]}, "the test", True)
    x, y = torch.arange(3.0), torch.full((3,), 2.0)
    function(x, [x])  # both the same here, and nowhere else
    assert torch.equal(function(x, [y])["sum"], x + y)
    assert torch.equal(function(x[:2], [y[:2]])["product"][0], x[:2] * y[:2])
    assert torch.equal(function(y, (x,))["sum"], x + y)
    assert len(traced) == 2
    square = torch.arange(9.0).view(3, 3)
    assert torch.equal(function(square.T, [square])["sum"], square + square.T)
    assert torch.equal(function(square, [square])["sum"], square + square)
    assert len(traced) == 4, "other strides have a graph of their own"


weight = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * weight, "it reads weights that are not among its arguments"),
        (lambda x: x + torch.rand(2), "it draws random numbers"),
        (lambda x: x * float(x.sum()), "RuntimeError"),
    ],
)
def test_what_cannot_be_compiled_runs_as_it_is(function, reason, notes):
    once = compiled(function, "the test", True)
    torch.manual_seed(0)
    assert once(torch.ones(2)).shape == (2,)
    assert once(torch.ones(3)[:2]).shape == (2,)
    (line,) = notes
    assert line.startswith(f"hardware.compile: the test runs uncompiled: {reason}")


def test_without_a_compiler_one_line_says_so(monkeypatch, notes):
    monkeypatch.setenv("CXX", "no-such-compiler")
    train("maml_dqn")
    assert notes == ["hardware.compile: there is no C++ compiler (no-such-compiler); everything runs uncompiled"]


def test_a_compiler_that_fails_is_not_needed(monkeypatch, notes):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("torch._inductor.compile", fail)
    plain, fast = train("maml_dqn")
    assert all(torch.equal(a, b) for a, b in zip(plain, fast, strict=True))
    whats = ["the dynamics of CartPole", "the meta-gradient"]
    assert notes == [f"hardware.compile: {what} runs uncompiled: OSError: no space left on device" for what in whats]


def test_nothing_is_wrapped_where_nothing_is_compiled():
    assert compiled(len, "the length", False) is len
    assert isinstance(compiled(len, "the length", True), compiling.Compiled)

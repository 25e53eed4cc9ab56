"""Optimisers of the inner loop: SGD and Adam are torch's, row by row; the learned rule is Adam at first, and has no scale."""

import math

import pytest
import torch
from conftest import flat

from metarl_cli.evolution.genomes import optimizer as genome
from metarl_cli.networks.optimizers import SGD, Adam, Learned

SHAPES = {"hidden.0.weight": (3, 2), "hidden.0.bias": (3,), "head.weight": (2, 3), "value.bias": (1,)}
ROWS = 3
FEATURES = ("gradient", "mean 2", "mean 10", "mean 100", "weight", "progress", "bias", "head", "one")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(seed=0, rows=ROWS):
    rng = generator(seed)
    return {k: torch.randn(rows, *shape, generator=rng) for k, shape in SHAPES.items()}


def gradients(steps, rows=ROWS):
    return [{k: (i + 1) * v for k, v in weights(100 + i, rows).items()} for i in range(steps)]


def rates(*values):
    """A learning rate of each row, for every weight."""
    return {k: torch.tensor(values).reshape(-1, *[1] * len(shape)) for k, shape in SHAPES.items()}


def run(rule, params, gradients, rates):
    for i, gradient in enumerate(gradients):
        params = rule.step(params, gradient, rates, i / len(gradients))
    return params


def start(rows=ROWS):
    """The learned rule that a search begins with, its hidden layer drawn."""
    part = genome.Genome(genome.Config(hidden=8, scale=1.0), None, generator())
    return part, part.decode(part.start.expand(rows, -1))["optimizer"]


def drawn(rows=ROWS):
    """Any learned rule, another for each row."""
    part, _ = start()
    genes = part.start + 0.3 * torch.randn(rows, len(part.start), generator=generator(5))
    return part.decode(genes)["optimizer"]


@pytest.mark.parametrize(("rule", "theirs"), [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam)])
def test_every_row_is_torchs_own(rule, theirs):
    lrs = [0.1, 0.01, 0.5]
    moved = run(rule(), weights(), gradients(6), rates(*lrs))
    for row, lr in enumerate(lrs):
        expected = {k: v[row].clone().requires_grad_() for k, v in weights().items()}
        optimizer = theirs(list(expected.values()), lr=lr)
        for gradient in gradients(6):
            for k, w in expected.items():
                w.grad = gradient[k][row]
            optimizer.step()
        for k, w in expected.items():
            torch.testing.assert_close(moved[k][row], w.detach(), rtol=0, atol=1e-5)


def test_the_learned_rule_starts_as_adam():
    lr = rates(0.1, 0.01, 0.5)
    learned = run(Learned(start()[1]), weights(), gradients(20), lr)
    adam = run(Adam(), weights(), gradients(20), lr)
    for k in SHAPES:
        torch.testing.assert_close(learned[k], adam[k], rtol=0, atol=1e-5)
        assert not torch.allclose(adam[k], weights()[k], atol=0.1)


@pytest.mark.parametrize("factor", [1000, 0.01])
def test_the_learned_rule_sees_no_scale(factor):
    rule, lr = drawn(), rates(0.1, 0.1, 0.1)
    one = run(Learned(rule), weights(), gradients(5), lr)
    other = run(Learned(rule), weights(), [{k: factor * g for k, g in step.items()} for step in gradients(5)], lr)
    for k in SHAPES:
        torch.testing.assert_close(one[k], other[k], rtol=0, atol=1e-4)
        assert not torch.allclose(one[k], weights()[k], atol=1e-2)


def direct(name, size=1.0):
    """The rule whose update is one of its inputs."""
    values = torch.zeros(1, Learned.FEATURES)
    values[0, FEATURES.index(name)] = size
    return {"direct": values, "inner": torch.zeros(1, Learned.FEATURES, 2), "outer": torch.zeros(1, 2, 2)}


def update(rule, gradients, name="hidden.0.weight", progress=0.25):
    """The last update of one weight, at a learning rate of 1."""
    learned, w = Learned(rule), torch.tensor([[[3.0, 4.0]]])
    for g in gradients:
        before = w
        w = learned.step({name: w}, {name: torch.tensor([[g]])}, {name: torch.ones(1, 1, 1)}, progress)[name]
    return (before - w)[0, 0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradient", [1.0, -1.0]),  # over the root of its mean square
        ("weight", [3 / math.sqrt(12.5), 4 / math.sqrt(12.5)]),
        ("progress", [0.25, 0.25]),
        ("bias", [0.0, 0.0]),
        ("head", [0.0, 0.0]),
        ("one", [1.0, 1.0]),
    ],
)
def test_inputs_of_a_first_step(name, expected):
    assert update(direct(name), [[0.5, -7.0]]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("weight", "flags"),
    [
        ("head.weight", (0, 1)),
        ("value.bias", (1, 1)),
        ("hidden.1.bias", (1, 0)),
        ("hidden.0.shift", (1, 0)),
        ("context", (0, 0)),
    ],
)
def test_which_weights_are_flagged(weight, flags):
    assert [update(direct(name), [[1.0, 1.0]], weight)[0] for name in ("bias", "head")] == list(flags)


@pytest.mark.parametrize(("name", "memory"), [("mean 2", 0.5), ("mean 10", 0.9), ("mean 100", 0.99)])
def test_running_means_are_unbiased(name, memory):
    history = [2.0, -1.0, 4.0]
    shares = [memory ** (2 - i) for i in range(3)]
    mean = sum(s * g for s, g in zip(shares, history, strict=True)) / sum(shares)
    decays = [0.999 ** (2 - i) for i in range(3)]
    square = sum(d * g * g for d, g in zip(decays, history, strict=True)) / sum(decays)
    expected = mean / math.sqrt(square)
    assert update(direct(name), [[g, 10 * g] for g in history]) == pytest.approx([expected, expected], rel=1e-3)


def test_a_sudden_gradient_is_cut_off():
    assert update(direct("gradient"), [[1.0, 1.0]] * 300 + [[1e6, 1.0]]) == pytest.approx([5, 1], rel=1e-3)


def test_the_hidden_layer_adds_to_direction_and_size():
    rule = direct("gradient")
    rule["inner"][0, FEATURES.index("one")] = torch.tensor([20.0, -20.0])  # tanh: 1 and -1
    rule["outer"][0] = torch.tensor([[0.5, 2 * math.log(2)], [0.25, 0.0]])  # direction 0.5 - 0.25, size 2 ln 2
    assert update(rule, [[0.5, -7.0]]) == pytest.approx([1.25 * 2, -0.75 * 2], rel=1e-4)


@pytest.mark.parametrize("rule", [SGD, Adam, lambda: Learned(drawn())])
def test_what_has_no_gradient_stays(rule):
    some = [{"hidden.0.bias": g["hidden.0.bias"]} for g in gradients(2)]
    moved = run(rule(), weights(), some, {"hidden.0.bias": torch.full((ROWS, 1), 0.1)})
    assert {k for k, v in weights().items() if not torch.equal(moved[k], v)} == {"hidden.0.bias"}


def test_each_row_has_a_rule_of_its_own():
    rule, lr = drawn(), rates(0.1, 0.1, 0.1)
    together = run(Learned(rule), weights(), gradients(4), lr)
    for row in range(ROWS):
        mine = slice(row, row + 1)
        alone = [{k: g[mine] for k, g in step.items()} for step in gradients(4)]
        one = run(Learned({k: v[mine] for k, v in rule.items()}), {k: v[mine] for k, v in weights().items()}, alone, rates(0.1))
        for k in SHAPES:
            torch.testing.assert_close(together[k][mine], one[k], rtol=0, atol=1e-6)


RULES = {"sgd": SGD, "adam": Adam, "learned": lambda: Learned({k: v[:1] for k, v in drawn().items()})}


@pytest.mark.parametrize("name", RULES)
def test_rows_taken_go_on_in_the_place_of_others(name):
    """As if the second had been in the first's place all along."""
    rule, other, rows, lr = RULES[name](), RULES[name](), torch.tensor([1, 1, 2]), rates(0.1, 0.1, 0.1)
    first, rest = gradients(6)[:3], [{k: g[rows] for k, g in step.items()} for step in gradients(6)[3:]]
    params = run(rule, weights(), first, lr)
    rule.select_rows(rows)
    params = run(rule, {k: v[rows] for k, v in params.items()}, rest, lr)
    expected = {k: v[rows] for k, v in weights().items()}
    expected = run(other, expected, [{k: g[rows] for k, g in step.items()} for step in first], lr)
    expected = run(other, expected, rest, lr)
    for k in SHAPES:
        torch.testing.assert_close(params[k], expected[k], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_saved_memory_goes_on_with_the_same_bits(name):
    rule, other, lr = RULES[name](), RULES[name](), rates(0.1, 0.1, 0.1)
    params = run(rule, weights(), gradients(3), lr)
    other.load_state_dict(rule.state_dict())
    one, two = (run(x, params, gradients(3), lr) for x in (rule, other))
    assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(two), strict=True))
    if name != "sgd":
        forgetful = run(RULES[name](), params, gradients(3), lr)
        assert not torch.equal(forgetful["head.weight"], one["head.weight"])

"""What genes mean: end points, round trips; networks that are parts of one, and that grow without forgetting."""

import math

import pytest
import torch
from conftest import compose_train, compose_values, load
from torch.func import grad, vmap

from metarl_cli.config import registry
from metarl_cli.evolution.genomes.genes import fold
from metarl_cli.evolution.genomes.hyper import Range
from metarl_cli.evolution.lifetimes.traits import rates
from metarl_cli.evolution.population import Genes
from metarl_cli.learners.dqn import DQN
from metarl_cli.networks.optimizers import Learned
from metarl_cli.networks.q_network import ACTIVATIONS, NetworkConfig, QNetwork, grow, in_structure, structured
from metarl_cli.spaces import Discrete, Spec

SPEC = Spec(obs_shape=(3,), actions=Discrete(2), horizon=10)
WIDEST = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def learner(*overrides, hidden=(WIDEST, WIDEST, WIDEST)):
    module, config = load(
        "learner", compose_train("algo=maml_dqn", f"learner.network.hidden={list(hidden)}", *overrides).learner
    )
    return module.Learner(config, SPEC)


def part(name, *overrides, **more):
    """One part of a genome, as ``conf/algo/genome`` has it."""
    values = compose_values("train", ["algo=evo_dqn", f"algo/genome=[{name}]", *overrides])["algo"]
    return Genes(registry.load("algo", values).config.genome, learner(**more), generator())


# -- genes of bounded values


def test_fold_goes_back_and_forth():
    genes = torch.tensor([0.0, 0.3, 1.0, 1.2, 2.0, 2.5, 3.25, -0.3, -1.0, -1.25])
    places = torch.tensor([0.0, 0.3, 1.0, 0.8, 0.0, 0.5, 0.75, 0.3, 1.0, 0.75])
    torch.testing.assert_close(fold(genes), places, rtol=0, atol=1e-6)
    far = fold(torch.linspace(-7, 7, 1401, dtype=torch.float64))
    assert ((far >= 0) & (far <= 1)).all()
    assert far.diff().abs().max() < 0.0101, "a small mutation is a small change"


@pytest.mark.parametrize(
    ("spacing", "low", "high", "middle"),
    [
        ("linear", -2.0, 4.0, 1.0),
        ("log", 1e-4, 1e-2, 1e-3),
        ("complement", 0.9, 0.999, 0.99),
    ],
)
def test_ranges_go_from_end_to_end(spacing, low, high, middle):
    found = Range(low=low, high=high, spacing=spacing).at(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([low, middle, high], rel=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "spacing", "words"),
    [
        (2.0, 2.0, "linear", r"low \(2\) must be below high \(2\)"),
        (0.0, 1.0, "log", r"spacing=log does not go with \[0, 1\]"),
        (0.5, 1.0, "complement", r"spacing=complement does not go with \[0.5, 1\]"),
    ],
)
def test_impossible_ranges_are_refused(low, high, spacing, words):
    with pytest.raises(ValueError, match=words):
        Range(low=low, high=high, spacing=spacing)


def test_a_gene_for_each_hyper_parameter():
    genome = part("hyper")
    assert genome.start.tolist() == [0.5] * 6
    assert genome.scale.tolist() == pytest.approx([0.1] * 6)
    genes = torch.stack([torch.zeros(6), torch.ones(6), 1 + torch.arange(6) / 5])
    found = genome.decode(genes)["hyper"]
    ends = [(1e-4, 3e-2), (0.8, 0.997), (0.01, 0.3), (0.05, 1.0), (8, 64), (1, 300)]
    assert list(found) == ["lr", "gamma", "epsilon_end", "epsilon_decay", "batch", "target_every"]
    for values, (low, high) in zip(found.values(), ends, strict=True):
        assert values[:2].tolist() == pytest.approx([low, high], rel=1e-5)
    assert found["lr"][2] == pytest.approx(3e-2, rel=1e-5)  # at 1 from above, and the last at 2: back at 0
    assert found["target_every"][2] == pytest.approx(1, rel=1e-5)
    assert all(torch.equal(v, found[k.removeprefix("hyper/")]) for k, v in genome.describe(genes).items())


# -- weights, rates, rules


def test_initial_weights_there_and_back():
    genome = part("init")
    fresh = learner().init(generator())
    found = genome.decode(genome.start[None])["init"]
    assert list(found) == list(fresh)
    assert all(torch.equal(found[k][0], v) for k, v in fresh.items())
    genes = torch.randn(3, len(genome.start), generator=generator(1))
    found = genome.decode(genes)["init"]
    assert torch.equal(torch.cat([v.flatten(1) for v in found.values()], 1), genes)
    assert all(v.shape[1:] == fresh[k].shape for k, v in found.items())


def test_a_change_of_a_weight_is_as_large_as_its_layer():
    genome = part("init", "algo.genome.init.scale=2", "algo.genome.init.bias_scale=0.7")
    sizes = genome.decode(genome.scale[None])["init"]
    for name, value in learner().init(generator()).items():
        expected = 0.7 if name.endswith("bias") else 2 * float(value.std())
        assert sizes[name].min() == sizes[name].max() == pytest.approx(expected, rel=1e-6)


def test_what_is_read_of_weights():
    genome = part("init")
    weights = learner().init(generator())
    read = genome.describe(genome.start[None])
    assert {k: float(v) for k, v in read.items()} == pytest.approx(
        {f"init/{k} rms": float(v.square().mean().sqrt()) for k, v in weights.items() if v.dim() == 2}, rel=1e-5
    )


@pytest.mark.parametrize(("progress", "factor"), [(0.0, math.exp(0.5 - 0.2)), (0.5, math.exp(0.5)), (1.0, math.exp(0.5 + 0.2))])
def test_rates_are_exponentials_along_a_lifetime(progress, factor):
    genome = part("rates", "algo.genome.rates.schedule=true")
    names = list(learner().init(generator()))
    assert not genome.start.any()
    assert len(genome.start) == 2 * len(names)
    genes = torch.zeros(2, 2 * len(names))
    place = names.index("hidden.1.weight")
    genes[1, place], genes[1, len(names) + place] = 0.5, 0.4
    gradients = {"hidden.1.weight": torch.zeros(2, 4, 4), "head.bias": torch.zeros(2, 2)}
    found = rates(torch.tensor([0.1, 0.2]), genome.decode(genes)["rates"], gradients, progress)
    assert {k: v.shape for k, v in found.items()} == {"hidden.1.weight": (2, 1, 1), "head.bias": (2, 1)}
    assert found["hidden.1.weight"].flatten().tolist() == pytest.approx([0.1, 0.2 * factor])
    assert found["head.bias"].flatten().tolist() == pytest.approx([0.1, 0.2])
    read = genome.describe(genes)
    assert float(read["rates/hidden.1.weight rate, first"][1]) == pytest.approx(math.exp(0.3))
    assert float(read["rates/hidden.1.weight rate, last"][1]) == pytest.approx(math.exp(0.7))


def test_rates_without_schedule_stay():
    genome = part("rates")
    genes = torch.full((1, len(genome.start)), 0.5)
    trait = genome.decode(genes)["rates"]
    ends = [rates(torch.tensor([2.0]), trait, {"head.bias": torch.zeros(1, 2)}, t)["head.bias"].item() for t in (0.0, 1.0)]
    assert ends == pytest.approx([2 * math.exp(0.5)] * 2)
    assert float(genome.describe(genes)["rates/head.bias rate"]) == pytest.approx(math.exp(0.5))


def test_without_a_trait_the_rate_is_the_base():
    found = rates(torch.tensor([0.3]), None, {"head.bias": torch.zeros(5, 2)}, 0.7)
    assert found["head.bias"].tolist() == [[pytest.approx(0.3)]]


def test_the_rule_a_search_starts_at():
    genome = part("optimizer")
    rule = genome.decode(genome.start[None])["optimizer"]
    assert {k: v.shape[1:] for k, v in rule.items()} == {"direct": (9,), "inner": (9, 8), "outer": (8, 2)}
    assert rule["direct"].tolist() == [[0, 0, 1, 0, 0, 0, 0, 0, 0]]
    assert not rule["outer"].any()
    assert float(rule["inner"].std()) == pytest.approx(1 / 3, rel=0.3)
    read = genome.describe(genome.start[None])
    assert len(read) == Learned.FEATURES
    assert {k for k, v in read.items() if v} == {"optimizer/direct: mean 10"}


def test_parts_stand_one_after_another():
    both = part("rates,hyper")
    alone = part("rates"), part("hyper")
    assert torch.equal(both.start, torch.cat([one.start for one in alone]))
    assert torch.equal(both.scale, torch.cat([one.scale for one in alone]))
    genes = torch.rand(4, len(both.start), generator=generator())
    found, read = both.decode(genes), both.describe(genes)
    assert set(found) == {"rates", "hyper"}
    for one, mine in zip(alone, genes.split([len(one.start) for one in alone], 1), strict=True):
        for kind, values in one.decode(mine).items():
            assert all(torch.equal(found[kind][k], v) for k, v in values.items())
        assert all(torch.equal(read[k], v) for k, v in one.describe(mine).items())


# -- networks of another shape


def architecture(*overrides):
    return part("architecture", "algo.genome.architecture.narrowest=4", *overrides)


def shape(depth, widths, activation="relu"):
    """The structure [1, ...] of one network of ``depth`` layers, ``widths`` of all three."""
    found = {
        "structure.depth": (torch.arange(3) < depth).float(),
        "structure.activation": torch.tensor([float(name == activation) for name in ACTIVATIONS]),
    } | {f"structure.width.{i}": (torch.arange(WIDEST) < w).float() for i, w in enumerate(widths)}
    return {k: v[None] for k, v in found.items()}


def network(hidden, activation="relu", dueling=False):
    config = NetworkConfig(
        convolutions=[], hidden=list(hidden), activation=activation, layer_norm=False, dueling=dueling, context=0
    )
    return QNetwork(config, SPEC.obs_shape, (2,), SPEC.obs_scale)


LARGEST = network([WIDEST] * 3)
OBS = torch.randn(50, 3, generator=generator(9))


def fresh(seed=0, net=LARGEST):
    """Weights [1, ...] without the zeros of a fresh network."""
    rng = generator(seed)
    return {k: (v + 0.2 * torch.randn(v.shape, generator=rng))[None] for k, v in net.init(rng).items()}


def values(params, net=LARGEST):
    return vmap(net, in_dims=(0, None))(params, OBS)


@pytest.mark.parametrize(
    ("genes", "depth", "widths", "activation"),
    [
        ([0.0, 0.0, 0.5, 1.0, 0.0], 1, [4, 8, 16], "relu"),
        ([0.5, 1.0, 1.0, 1.0, 0.5], 2, [16, 16, 16], "tanh"),
        ([1.0, 0.25, 0.0, 2.0, 0.99], 3, [6, 4, 4], "silu"),
    ],
)
def test_genes_of_a_shape(genes, depth, widths, activation):
    genome = architecture()
    assert genome.start.tolist() == [0.5] * 5
    found = genome.decode(torch.tensor([genes]))["structure"]
    expected = shape(depth, widths, activation)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    read = genome.describe(torch.tensor([genes]))
    assert read["architecture/layers"].item() == depth
    seen = [read[f"architecture/units {i + 1}"].item() for i in range(3)]
    assert seen == [w if i < depth else 0 for i, w in enumerate(widths)]
    assert read["architecture/activation"].item() == list(ACTIVATIONS).index(activation)


def test_every_depth_and_activation_is_as_likely():
    genes = torch.rand(6000, 5, generator=generator())
    read = architecture().describe(genes)
    for name, first in (("layers", 1), ("activation", 0)):
        counts = torch.bincount(read[f"architecture/{name}"] - first, minlength=3) / 6000
        assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_the_activation_may_be_the_learners():
    genome = architecture("algo.genome.architecture.activations=false")
    assert len(genome.start) == 4
    assert genome.decode(genome.start[None])["structure"]["structure.activation"].tolist() == [[0, 0, 1]]  # silu
    assert "architecture/activation" not in genome.describe(genome.start[None])


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "widths"), [(1, (5, 16, 3)), (2, (16, 7, 4)), (3, (4, 16, 9)), (3, (16, 16, 16))])
def test_a_part_of_a_network_is_a_smaller_network(depth, widths, activation, dueling):
    large = network([WIDEST] * 3, "silu", dueling)
    params = structured(fresh(net=large), shape(depth, widths, activation))
    small = network(widths[:depth], activation, dueling)
    inputs = [3, *widths[:depth]]
    cut = {f"hidden.{i}.weight": params[f"hidden.{i}.weight"][0, :w, : inputs[i]] for i, w in enumerate(widths[:depth])}
    cut |= {f"hidden.{i}.bias": params[f"hidden.{i}.bias"][0, :w] for i, w in enumerate(widths[:depth])}
    for head in ("head", "value") if dueling else ("head",):
        cut |= {f"{head}.weight": params[f"{head}.weight"][0, :, : inputs[-1]], f"{head}.bias": params[f"{head}.bias"][0]}
    assert {k: v.shape for k, v in cut.items()} == {k: v.shape for k, v in small.init(generator()).items()}
    torch.testing.assert_close(values(params, large)[0], small(cut, OBS), rtol=0, atol=1e-5)
    torch.testing.assert_close(large(params, OBS[None]), values(params, large), rtol=0, atol=1e-5)


def test_fresh_parts_are_scaled_by_the_inputs_they_have():
    """He's variance, 2 over the number of inputs, whatever the widths."""
    net = network([64, 64])
    weights = {k: v[None] for k, v in net.init(generator()).items()}
    narrow = {
        "structure.depth": torch.ones(1, 2),
        "structure.activation": torch.tensor([[1.0, 0.0, 0.0]]),
        "structure.width.0": (torch.arange(64) < 16).float()[None],
        "structure.width.1": torch.ones(1, 64),
    }
    fitted = structured(weights, narrow)
    used = fitted["hidden.1.weight"][0, :, :16]
    assert float(used.var()) == pytest.approx(2 / 16, rel=0.1)
    assert torch.equal(fitted["hidden.0.weight"], weights["hidden.0.weight"])


def test_no_gradient_moves_what_is_not_there():
    params = structured(fresh(), shape(2, (5, 7, 9)))
    moving = {k: v for k, v in params.items() if not in_structure(k)}
    fixed = {k: v for k, v in params.items() if in_structure(k)}
    gradients = vmap(grad(lambda p, f: LARGEST({**f, **p}, OBS).square().mean()))(moving, fixed)
    size = {  # rows and columns that are there
        "hidden.0.weight": (5, 3),
        "hidden.0.bias": (5,),
        "hidden.1.weight": (7, 5),
        "hidden.1.bias": (7,),
        "hidden.2.weight": (0, 0),
        "hidden.2.bias": (0,),
        "head.weight": (2, 7),
        "head.bias": (2,),
    }
    for name, gradient in gradients.items():
        there = torch.zeros_like(gradient[0], dtype=torch.bool)
        there[tuple(slice(n) for n in size[name])] = True
        assert not gradient[0][~there].any(), name
        if there.any():
            assert (gradient[0][there] != 0).float().mean() > 0.4, name


SMALL = [(1, (5, 9, 3)), (2, (9, 9, 4)), (2, (5, 12, 16)), (3, (6, 6, 6))]
LARGER = {  # growth: what is larger, and by what right the function is the same
    "units below": lambda d, w: (d, (w[0] + 3, *w[1:])),
    "units everywhere": lambda d, w: (d, tuple(WIDEST for _ in w)),
    "a layer as wide": lambda d, w: (d + 1, tuple(x if i < d else w[d - 1] for i, x in enumerate(w))),
    "a wider layer": lambda d, w: (d + 1, tuple(x if i < d else WIDEST for i, x in enumerate(w))),
    "layers and units": lambda d, w: (3, (WIDEST,) * 3),
}


@pytest.mark.parametrize(
    ("small", "growth"), [(small, growth) for small in SMALL for growth in LARGER if LARGER[growth](*small)[0] <= 3]
)
@pytest.mark.parametrize("dueling", [False, True])
def test_what_grows_computes_what_it_did(small, growth, dueling):
    depth, widths = LARGER[growth](*small)
    net = network([WIDEST] * 3, "relu", dueling)
    before = structured(fresh(net=net), shape(*small))
    after = grow(before, shape(depth, widths))
    assert all(torch.equal(after[k], v) for k, v in shape(depth, widths).items())
    torch.testing.assert_close(values(after, net), values(before, net), rtol=0, atol=1e-5)
    assert float(values(before, net).std()) > 0.1


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_units_may_grow_under_any_activation(activation):
    before = structured(fresh(), shape(2, (5, 7, 9), activation))
    after = grow(before, shape(2, (16, 12, 16), activation))
    torch.testing.assert_close(values(after), values(before), rtol=0, atol=1e-5)


def test_what_has_grown_learns():
    params = grow(structured(fresh(), shape(1, (5, 5, 5))), shape(2, (9, 9, 5)))
    moving = {k: v for k, v in params.items() if not in_structure(k)}
    fixed = {k: v for k, v in params.items() if in_structure(k)}
    gradients = vmap(grad(lambda p, f: LARGEST({**f, **p}, OBS).square().mean()))(moving, fixed)
    assert gradients["hidden.1.weight"][0, :5, 5:9].any(), "the old layer's new units are listened to"
    assert gradients["head.weight"][0, :, 5:9].any(), "and so are the new layer's"


def test_what_was_lost_comes_back_as_new():
    """Nobody listens to what units and layers had learned before they were dropped."""
    before = structured(fresh(), shape(3, (12, 12, 12)))
    less = grow(before, shape(1, (6, 12, 12)))
    assert not torch.allclose(values(less), values(before), atol=0.05)
    grown = less
    for depth, widths in [(1, (12, 12, 12)), (2, (12, 16, 12)), (3, (16, 16, 16))]:
        grown = grow(grown, shape(depth, widths))
        torch.testing.assert_close(values(grown), values(less), rtol=0, atol=1e-5)


def test_each_row_grows_on_its_own():
    starts = [(1, (5, 9, 3)), (2, (9, 9, 4)), (3, (6, 6, 6))]
    ends = [(2, (9, 9, 9)), (1, (4, 4, 4)), (3, (6, 16, 6))]
    alone = [grow(structured(fresh(i), shape(*a)), shape(*b)) for i, (a, b) in enumerate(zip(starts, ends, strict=True))]
    many = [structured(fresh(i), shape(*a)) for i, a in enumerate(starts)]
    together = grow(
        {k: torch.cat([one[k] for one in many]) for k in many[0]},
        {k: torch.cat([shape(*b)[k] for b in ends]) for k in shape(*ends[0])},
    )
    for k in together:
        assert torch.equal(together[k], torch.cat([one[k] for one in alone])), k


def test_a_learner_is_a_dqn_of_that_shape():
    """The names in which a genome speaks are those the learner's network understands."""
    dqn = learner("learner.network.activation=relu")
    assert isinstance(dqn, DQN)
    genome = architecture()
    genes = torch.rand(3, 5, generator=generator())
    params = {k: v[None].repeat(3, *[1] * v.dim()) for k, v in dqn.init(generator()).items()}
    found = structured(params, genome.decode(genes)["structure"])
    action = dqn.policy(found, OBS[None].repeat(3, 1, 1)).mode()
    assert action.shape == (3, 50)
    q = values(found)
    assert torch.equal(action, q.argmax(-1))
    assert not torch.allclose(q[0], q[1])

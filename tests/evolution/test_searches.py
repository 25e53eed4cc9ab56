"""Searches: known optima, the gradient in closed form, selection by counting, crossover's invariants, states to the bit."""

import importlib
import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
from conftest import compose_values, flat, options, slow_if
from pydantic import ValidationError

from metarl_cli.errors import UserError
from metarl_cli.evolution.searches import genetic, openai_es, snes
from metarl_cli.evolution.searches.fitness import metrics, shape_by_rank
from metarl_cli.runs import checkpoint

# Every option of conf/algo/search, and the choices within one that another code path takes.
SEARCHES = {name: (name, {}) for name in options("algo/search")} | {
    "genetic roulette averaging": ("genetic", {"selection": "roulette", "crossover": "averaging"}),
    "genetic truncation uniform": ("genetic", {"selection": "truncation", "crossover": "uniform", "elites": 0}),
    "cma_es diagonal": ("cma_es", {"covariance": "diagonal"}),
    "pbt": ("pbt", {"patience": 0}),  # from its first selection on
}
every_search = pytest.mark.parametrize("name", SEARCHES)


@cache
def values(option):
    return compose_values("train", [f"+algo/search={option}"])["algo"]["search"]


def make(name, start, scale=None, seed=0, **overrides):
    option, choices = SEARCHES[name]
    config = values(option) | choices | overrides
    module = importlib.import_module(f"metarl_cli.evolution.searches.{config.pop('module')}")
    scale = torch.ones_like(start) if scale is None else scale
    return module.Search(module.Config(**config), start, scale, torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sphere(x):
    return -x.square().sum(-1)


def rosenbrock(x):
    return -(100 * (x[..., 1] - x[..., 0].square()).square() + (1 - x[..., 0]).square())


def rastrigin(x):
    return -(x.square() - 10 * torch.cos(2 * math.pi * x) + 10).sum(-1)


def tilted(x):
    """A sphere whose genes go together, and differ in scale a hundredfold: a covariance is there to be learned."""
    sizes = torch.logspace(0, 2, x.shape[-1], dtype=x.dtype)
    return -(sizes * (x + x.roll(1, -1)).square()).sum(-1) - x.square().sum(-1)


def advance(search, generations):
    for _ in range(generations):
        search.tell(tilted(search.ask()))


FUNCTIONS = {  # function, start, and how near its maximum of 0 is near enough
    "sphere": (sphere, [2.0] * 5, 0.01),
    "plane": (lambda x: -(x[..., :2] - 1).square().sum(-1), [2.0, 2.0], 0.01),
    "rosenbrock": (rosenbrock, [-1.0, 1.0], 0.05),
    "rastrigin": (rastrigin, [2.2] * 3, 1.5),
}
BUDGET = {  # evaluations, and what the function wants of the search
    ("genetic", "sphere"): (4000, {"sigma": 0.3, "sigma_decay": 0.99}),
    ("genetic", "rosenbrock"): (10000, {"sigma": 0.3, "sigma_decay": 0.99, "crossover": "sbx", "mutation": 0.2}),
    ("genetic", "rastrigin"): (4000, {"sigma_decay": 0.99, "mutation": 0.2}),
    ("genetic_few", "sphere"): (4000, {"sigma": 0.3, "sigma_decay": 0.99}),
    ("pbt", "sphere"): (4000, {"sigma": 0.3, "sigma_decay": 0.99, "spread": 1.0}),
    ("random", "plane"): (2000, {"spread": 1.0}),
    ("deep_ga", "sphere"): (4000, {}),
    ("deep_ga", "rosenbrock"): (4000, {}),
    ("deep_ga", "rastrigin"): (4000, {"sigma": 0.5, "mutation": 0.3}),
    ("openai_es", "sphere"): (8000, {"sigma": 0.1}),
    ("openai_es", "rosenbrock"): (8000, {"sigma": 0.05, "sigma_decay": 0.99, "lr": 0.03, "population": 32}),
    ("openai_es", "rastrigin"): (40000, {"sigma": 0.5, "lr": 0.02}),
    ("snes", "sphere"): (1000, {"population": 16}),
    ("snes", "rosenbrock"): (20000, {"population": 64}),
    ("snes", "rastrigin"): (8000, {"sigma": 2.0, "population": 64}),
    ("cma_es", "sphere"): (1000, {"population": 12}),
    ("cma_es", "rosenbrock"): (2000, {"population": 12}),
    ("cma_es", "rastrigin"): (6000, {"sigma": 2.0, "population": 64}),
    ("cma_es diagonal", "sphere"): (1000, {"population": 12}),
    ("genetic roulette averaging", "sphere"): (4000, {}),
    ("genetic truncation uniform", "sphere"): (4000, {}),
}


@pytest.mark.parametrize(("name", "function"), BUDGET)
@pytest.mark.parametrize("seed", [0, *slow_if([1, 2], lambda seed: True)])
def test_the_optimum_is_found(name, function, seed):
    budget, overrides = BUDGET[name, function]
    fitness, start, near = FUNCTIONS[function]
    search = make(name, torch.tensor(start), seed=seed, **overrides)
    spent = 0
    while fitness(search.best()) < -near:
        genomes = search.ask()
        spent += len(genomes)
        assert spent <= budget
        search.tell(fitness(genomes))


@every_search
def test_a_better_point_than_the_start_is_found(name):
    """What is asked of every option, a new one too, with the values it comes with."""
    start = torch.full((5,), 2.0)
    search = make(name, start)
    for _ in range(50):
        search.tell(sphere(search.ask()))
    assert sphere(search.best()) > sphere(start)


@every_search
@pytest.mark.parametrize("sign", [1, -1])
def test_greater_is_better(name, sign):
    search = make(name, torch.zeros(4))
    for _ in range(10):
        search.tell(sign * search.ask().sum(-1))
    assert sign * search.best().sum() > 0.5


@every_search
def test_genomes_stay_until_told_and_no_global_generator_is_drawn_from(name):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    start = torch.full((5,), 0.5)
    search = make(name, start)
    first = search.ask().clone()
    torch.testing.assert_close(search.best(), start, rtol=0, atol=0)
    assert torch.equal(search.ask(), first)
    assert first.dtype == torch.float32
    metrics = search.tell(sphere(first))
    assert not torch.equal(search.ask(), first)
    assert metrics["search/best"] == sphere(first).max()
    assert metrics["search/diversity"] == pytest.approx(float(first.std(0).mean()), rel=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@every_search
def test_only_the_order_of_fitness_counts(name):
    plain, cubed = make(name, torch.ones(5)), make(name, torch.ones(5))
    for _ in range(8):
        plain.tell(tilted(plain.ask()))
        cubed.tell(1000 + tilted(cubed.ask()).double() ** 3)
    assert torch.equal(plain.best(), cubed.best())
    assert not torch.equal(plain.best(), torch.ones(5))


def test_population_based_training_begins_as_random_search():
    """So what differs at the end is what evolution did; and whoever learns slowly has time to show what it is worth."""
    start, patience = torch.linspace(-1, 1, 4), values("pbt")["patience"]
    evolving, random = make("pbt", start, patience=patience), make("random", start)
    first = random.ask()
    for _ in range(patience):
        assert torch.equal(evolving.ask(), first)
        evolving.tell(sphere(first))
        assert torch.equal(evolving.best(), first[sphere(first).argmax()])
        assert torch.equal(evolving.parents, torch.arange(len(first)))
    assert torch.equal(evolving.ask(), first)
    evolving.tell(sphere(first))
    worst = sphere(first).argsort()[: len(first) // 4]
    gone = [not (evolving.ask() == genome).all(1).any() for genome in first]
    assert sorted(torch.tensor(gone).nonzero()[:, 0].tolist()) == sorted(worst.tolist())


@every_search
def test_scale_is_each_genes_unit(name):
    scale = torch.tensor([0.125, 1.0, 4.0, 64.0])  # powers of two: the arithmetic is the same to the bit
    one, other = make(name, torch.zeros(4)), make(name, torch.zeros(4), scale)
    for _ in range(8):
        assert torch.equal(one.ask() * scale, other.ask())
        told = one.tell(tilted(one.ask() - 1))
        assert told == pytest.approx(other.tell(tilted(other.ask() / scale - 1)))
    assert torch.equal(one.best() * scale, other.best())


@every_search
@pytest.mark.parametrize("asked", [False, True])
def test_killed_and_continued_is_the_same_bits(name, asked, tmp_path):
    start = torch.ones(6)
    uninterrupted = make(name, start)
    advance(uninterrupted, 12)
    if asked:
        uninterrupted.ask()
    checkpoint.save(tmp_path / "search.pt", {"search": uninterrupted.state_dict()})
    advance(uninterrupted, 20)

    for used in (0, 3):  # into a new search, and into one that has been elsewhere
        continued = make(name, 0 * start, seed=1)
        advance(continued, used)
        continued.load_state_dict(checkpoint.load(tmp_path / "search.pt")["search"])
        advance(continued, 20)
        assert torch.equal(continued.best(), uninterrupted.best())
        pairs = list(zip(flat(continued.state_dict()), flat(uninterrupted.state_dict()), strict=True))
        assert len(pairs) >= 3
        assert all(torch.equal(a, b) for a, b in pairs)


@every_search
def test_a_diverged_lifetime_counts_as_the_least(name):
    nan, least = make(name, torch.ones(3)), make(name, torch.ones(3))
    fitness = sphere(nan.ask())
    worst = fitness.argsort()[:3]
    fitness[worst] = fitness.min()
    least.tell(fitness)
    fitness[worst] = torch.tensor([torch.nan, -torch.inf, fitness.min()])
    assert math.isfinite(nan.tell(fitness)["search/mean"])
    assert torch.equal(nan.ask(), least.ask())


def test_a_single_genome_has_no_diversity():
    """Not NaN, which ends a run as diverged: random search may have a population of one."""
    assert metrics(torch.zeros(1), torch.ones(1, 3), torch.ones(3), 0.1)["search/diversity"] == 0


@every_search
def test_wrong_fitness_and_scales_are_refused(name):
    search = make(name, torch.ones(3))
    genomes = search.ask()
    with pytest.raises(ValueError, match="one number for each"):
        search.tell(genomes)
    with pytest.raises(ValueError, match="no fitness is finite"):
        search.tell(torch.full((len(genomes),), torch.nan))
    with pytest.raises(ValueError, match="positive"):
        make(name, torch.ones(3), torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="vectors alike"):
        make(name, torch.ones(3), torch.ones(4))


def test_impossible_values_are_refused():
    with pytest.raises(ValidationError, match="leave no room for children"):
        make("genetic", torch.ones(3), population=4, elites=4)
    with pytest.raises(ValidationError, match="multiple of 2"):
        make("openai_es", torch.ones(3), population=7)


def test_utilities_by_rank():
    utilities = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert shape_by_rank(torch.tensor([0.1, 9.0, -5.0, 0.3]), utilities).tolist() == [2, 4, 1, 3]
    assert shape_by_rank(torch.tensor([7.0, 7.0, 1.0, 7.0]), utilities).tolist() == [3, 3, 1, 3]  # the mean of 4, 3 and 2


@pytest.mark.parametrize("name", ["openai_es", "snes"])
def test_equal_fitness_moves_no_mean(name):
    search = make(name, torch.ones(3))
    search.tell(torch.zeros(len(search.ask())))
    torch.testing.assert_close(search.best(), torch.ones(3), rtol=0, atol=1e-6)


# OpenAI-ES


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_the_gradient_of_a_linear_and_a_quadratic_function(sigma):
    """Smoothing leaves the first's gradient a, and the second's - A x: their noise has no mean."""
    noise = torch.randn(40000, 3, generator=generator(), dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    points = mean + sigma * torch.cat([noise, -noise])
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(openai_es.gradient(noise, points @ slope, sigma), slope, rtol=0, atol=0.05)
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.7]], dtype=torch.float64)
    bowl = -0.5 * ((points @ matrix) * points).sum(-1)
    torch.testing.assert_close(openai_es.gradient(noise, bowl, sigma), -matrix @ mean, rtol=0, atol=0.05)


def test_the_mean_follows_torchs_own_adam():
    start, slope = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([3.0, 0.1, -1.0])
    search = make("openai_es", start, sigma=0.1, lr=0.05, shaping="none", weight_decay=0.1, sigma_decay=0.9)
    expected = start.clone().requires_grad_()
    adam = torch.optim.AdamW([expected], 0.05, (0.9, 0.999), 1e-8, weight_decay=0.1, maximize=True)
    sigma = 0.1
    for _ in range(10):
        genomes = search.ask()
        fitness = genomes @ slope
        noise = (genomes - search.best()).chunk(2)[0] / sigma
        expected.grad = openai_es.gradient(noise, fitness, sigma)
        adam.step()
        search.tell(fitness)
        sigma *= 0.9
    torch.testing.assert_close(search.best(), expected.detach(), rtol=0, atol=1e-4)


def test_pairs_are_antithetic():
    above, below = make("openai_es", torch.zeros(5)).ask().chunk(2)
    assert torch.equal(above, -below)


# SNES


def test_one_step_of_snes_by_hand():
    """P=4: raw utilities ln 3 - ln k of the best two, 1.0986 and 0.4055, make u = 0.4804, 0.0196, -0.25, -0.25."""
    torch.testing.assert_close(snes.utilities(4), torch.tensor([0.480416, 0.019584, -0.25, -0.25]).double(), rtol=0, atol=1e-5)
    search = make("snes", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 10.0]), population=4, sigma=0.5)
    deviation = torch.tensor([0.5, 5.0])
    noise = (search.ask() - search.best()) / deviation
    utility = torch.tensor([-0.25, 0.480416, 0.019584, -0.25])
    search.tell(torch.tensor([-7.0, 100.0, 3.0, -8.0]))
    mean = torch.tensor([1.0, 2.0]) + deviation * (utility @ noise)
    rate = (3 + math.log(2)) / (5 * math.sqrt(2))
    torch.testing.assert_close(search.best(), mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(search.sigma, deviation * (rate / 2 * (utility @ (noise**2 - 1))).exp(), rtol=1e-4, atol=0)


# CMA-ES


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_cma_es_is_cma(covariance):
    """The package by itself, on the same samples, minimising in units of scale."""
    import cma

    rng = generator()
    draw = {"randn": lambda *shape: torch.randn(shape, generator=rng, dtype=torch.float64).numpy(), "seed": np.nan}
    strategy = cma.CMAEvolutionStrategy(
        np.zeros(4), 0.5, {"popsize": 10, "CMA_diagonal": covariance == "diagonal", "verbose": -9} | draw
    )
    start, scale = torch.ones(4).double(), torch.tensor([1.0, 2.0, 3.0, 0.1]).double()
    search = make("cma_es", start, scale, population=10, covariance=covariance)
    for _ in range(30):
        points = strategy.ask()
        strategy.tell(points, [-float(tilted(start + scale * torch.from_numpy(z))) for z in points])
        search.tell(tilted(search.ask()))
    torch.testing.assert_close(search.best(), start + scale * torch.from_numpy(strategy.mean), rtol=0, atol=1e-9)
    assert tilted(search.best()) > 0.1 * tilted(start)


@pytest.mark.parametrize("generations", [2, 3])
def test_cma_es_continues_between_two_decompositions(generations):
    """With many genes and few genomes the covariance is decomposed every second generation: the last axes are state."""
    uninterrupted, continued = (make("cma_es", torch.ones(80), seed=seed, population=8) for seed in (0, 1))
    advance(uninterrupted, generations)
    continued.load_state_dict(uninterrupted.state_dict())
    advance(uninterrupted, 12)
    advance(continued, 12)
    assert torch.equal(continued.best(), uninterrupted.best())


def test_without_its_package_cma_es_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UserError, match=r"pip install cma"):
        make("cma_es", torch.zeros(3))


# The genetic algorithm: what is drawn is counted, 4 standard errors and more allowed


def shares(parents, num):
    return torch.bincount(parents, minlength=num) / len(parents)


FITNESS = torch.tensor([3.0, 50.0, -2.0, 7.0, 7.5], dtype=torch.float64)  # ranks, best first: 1, 4, 3, 0, 2


def test_tournaments_are_won_as_often_as_they_should_be():
    """The best of k: rank r, from 0, wins with ((P - r)^k - (P - r - 1)^k) / P^k."""
    won = shares(genetic.tournament(FITNESS, 40000, 3, generator()), 5)
    expected = torch.tensor([61.0, 37.0, 19.0, 7.0, 1.0]) / 125
    torch.testing.assert_close(won[torch.tensor([1, 4, 3, 0, 2])], expected, rtol=0, atol=0.011)


def test_the_wheel_gives_shares_in_a_line_of_rank():
    drawn = shares(genetic.roulette(FITNESS, 40000, 1.8, generator()), 5)
    expected = torch.tensor([1.8, 1.4, 1.0, 0.6, 0.2]) / 5
    torch.testing.assert_close(drawn[torch.tensor([1, 4, 3, 0, 2])], expected, rtol=0, atol=0.011)


def test_truncation_draws_evenly_from_the_best():
    drawn = shares(genetic.truncation(FITNESS, 40000, 0.4, generator()), 5)
    torch.testing.assert_close(drawn, torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5]), rtol=0, atol=0.011)


def parents():
    rng = generator(7)
    return torch.randn(2000, 6, generator=rng), torch.randn(2000, 6, generator=rng)


def test_uniform_crossover_takes_each_gene_from_either_parent():
    a, b = parents()
    one, other = genetic.uniform(a, b, generator())
    assert ((one == a) & (other == b) | (one == b) & (other == a)).all()
    assert (one == a).float().mean() == pytest.approx(0.5, abs=0.02)
    assert not (one == a).all(1).float().mean() > 0.05  # gene by gene, not parent by parent


@pytest.mark.parametrize("cross", [genetic.averaging, lambda a, b, rng: genetic.simulated_binary(a, b, 5.0, rng)])
def test_crossover_keeps_the_parents_middle(cross):
    a, b = parents()
    one, other = cross(a, b, generator())
    torch.testing.assert_close(one + other, a + b, rtol=0, atol=1e-5)
    assert (one != a).any(1).float().mean() > 0.9


def test_averages_lie_between_the_parents():
    a, b = parents()
    one, _ = genetic.averaging(a, b, generator())
    weight = (one - b) / (a - b)
    torch.testing.assert_close(weight.min(1).values, weight.max(1).values, rtol=0, atol=2e-2)  # one for the pair
    middle = weight.median(1).values
    assert 0 <= middle.min() < 0.01 < 0.99 < middle.max() <= 1


def test_simulated_binary_crossover_spreads_as_published():
    """P(beta <= x) is x^(eta+1) / 2 below 1 and 1 - x^-(eta+1) / 2 above, for the half of the genes that are crossed."""
    a, b = parents()
    one, other = genetic.simulated_binary(a, b, 2.0, generator())
    beta = ((one - other) / (a - b)).abs().double()
    assert (beta < 0.5).double().mean() == pytest.approx(0.5**3 / 4, abs=0.008)
    assert (beta < 0.999).double().mean() == pytest.approx(0.25, abs=0.02)
    assert (beta > 1.001).double().mean() == pytest.approx(0.25, abs=0.02)
    assert (beta > 2.0).double().mean() == pytest.approx(2.0**-3 / 4, abs=0.008)
    nearer = (one - a).abs() < (one - b).abs()
    assert nearer.float().mean() == pytest.approx(0.5, abs=0.02)  # genes are exchanged


def test_mutation_changes_its_share_of_genes_by_its_size():
    genomes, size = torch.zeros(20000, 2), torch.tensor([0.1, 5.0])
    mutated = genetic.mutate(genomes, 0.3, size, generator())
    changed = mutated != 0
    assert changed.float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.015)
    for gene in range(2):
        assert float(mutated[changed[:, gene], gene].std()) == pytest.approx(float(size[gene]), rel=0.03)


def test_elites_survive_unchanged_and_lead():
    search = make("genetic", torch.zeros(4), elites=3, population=20)
    genomes = search.ask()
    best = sphere(genomes - 1).topk(3).indices
    search.tell(sphere(genomes - 1))
    assert torch.equal(search.ask()[:3], genomes[best])
    assert torch.equal(search.best(), genomes[best[0]])
    assert len(search.ask()) == 20
    assert not (search.ask()[3:, None] == genomes).all(-1).all()


def test_without_crossover_and_mutation_children_are_copies():
    search = make("genetic", torch.zeros(4), population=11, elites=2, crossover_rate=0.0, mutation=0.0)
    genomes = search.ask()
    search.tell(sphere(genomes))
    assert (search.ask()[:, None] == genomes).all(-1).any(1).all()


def test_the_first_generation_is_spread_about_the_start():
    start, scale = torch.tensor([1.0, -3.0]), torch.tensor([0.1, 10.0])
    genomes = make("genetic", start, scale, population=4000, spread=2.0).ask()
    assert torch.equal(genomes[0], start)
    torch.testing.assert_close((genomes - start).std(0) / scale, torch.tensor([2.0, 2.0]), rtol=0.05, atol=0)

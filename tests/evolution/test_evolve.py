"""Evolution: fitness that no company changes, tasks that are kept apart, lines of descent, and what cannot go together."""

import copy
from functools import cache, reduce
from operator import getitem
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import CONF, algorithms, compose_values, flat, module, tiny

from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.algos import evolve
from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.evolution.lifetimes.dqn import Life
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget
from metarl_cli.networks.stacked import fresh
from metarl_cli.processes import Processes
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

APART = [name for name in algorithms() if module(name) is evolve]
EVOLUTIONS = [*APART, "adrl"]
every_evolution = pytest.mark.parametrize("algo", EVOLUTIONS)
GONE = object()


@cache
def composed(*overrides):
    return compose_values("train", list(overrides))


def option(group, name):
    """The values of ``conf/algo/<group>/<name>.yaml``."""
    values = yaml.safe_load((CONF / "algo" / group / f"{name}.yaml").read_text())
    return values[name] if group == "genome" else values


def made(algo, changes=None, env="cartpole_family"):
    """A small algorithm; ``changes`` are values by their dotted keys."""
    values = copy.deepcopy(small(algo))
    if env != "cartpole_family":
        values["env"] = copy.deepcopy(composed(f"env={env}")["env"])
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        group = reduce(getitem, path, values)
        if value is GONE:
            del group[last]
        else:
            group[last] = copy.deepcopy(value)
    return build(validate(TrainConfig, values)).algorithm


@cache
def small(algo):
    return composed(f"algo={algo}", *tiny(algo))


def training_tasks(algorithm, num):
    return {k: v[:num] for k, v in algorithm.task.items()}


def pretended(algorithm, fitness, validation=None):
    """Lets no one live: returns are functions of the genomes. The calls come to the list that is returned."""
    calls = []

    def evaluate(genomes, task, episodes, steps, name):
        calls.append((name, genomes.clone(), task))
        worth = {"fitness": fitness, "validation": validation}[name](genomes)
        return worth.double().reshape(len(genomes), -1).expand(-1, len(next(iter(task.values())))), 7

    algorithm._evaluate = evaluate
    return calls


def first_gene(genomes):
    return genomes[:, 0]


# -- fitness


@pytest.mark.parametrize("env", ["classic_mix", "navigation_2d"])
@pytest.mark.parametrize("algo", APART)
def test_an_individual_is_worth_what_it_is_alone(algo, env):
    """To the bit, in any company; and the same twice is worth the same."""
    algorithm = made(algo, {"algo.lifetime.steps": 1}, env)
    genomes, task = algorithm.search.ask()[[0, 1, 2, 1]], training_tasks(algorithm, 2)
    found = {}
    for chunk in (None, 1):
        algorithm.config = algorithm.config.model_copy(update={"chunk": chunk})
        found[chunk] = algorithm._evaluate(genomes, task, 2, 10, "fitness")
    returns, spent = found[None]
    assert returns.shape == (4, 2)
    assert torch.equal(returns[1], returns[3])
    assert torch.equal(found[1][0], returns)
    assert found[1][1] == spent > 0


def test_a_single_row_is_no_exception():
    """One individual on one task; products of single matrices may be rounded otherwise than those of many."""
    algorithm = made("learned_optimizer", {"algo.lifetime.steps": 1})
    genomes, task = algorithm.search.ask(), training_tasks(algorithm, 1)
    lives = []
    algorithm.lifetime.begin = lambda *args, begin=algorithm.lifetime.begin: (lives.append(begin(*args)), lives[-1])[1]
    for chunk in (None, 1):
        algorithm.config = algorithm.config.model_copy(update={"chunk": chunk})
        algorithm._evaluate(genomes, task, 1, 20, "fitness")
    whole, *alone = lives
    for k, v in whole.params.items():
        assert torch.equal(v, torch.cat([life.params[k][:1] for life in alone]))


@pytest.mark.parametrize("copies", [1, 4])
def test_individuals_are_born_with_the_same_fresh_networks(copies):
    """One for each task; though P M is the number of hidden units, those are no rows of copies."""
    algorithm = made("evo_hyper")
    genomes = algorithm.search.ask()[:copies]
    life = algorithm._begin(genomes, training_tasks(algorithm, 2), torch_rng(0, "life"))
    expected = fresh(algorithm.learner, 2, torch_rng(0, "life"))
    for k, v in expected.items():
        assert torch.equal(life.params[k], v.repeat(copies, *[1] * (v.dim() - 1)))
    assert len(life.params["hidden.0.weight"][0].unique(dim=0)) == 8


def test_generations_are_the_same_in_any_chunks():
    runs = [made("evo_dqn", {"algo.chunk": chunk, "algo.validation.candidates": 2}) for chunk in (None, 1, 4)]
    metrics = [[run.train_step() for _ in range(2)] for run in runs]
    for run, found in zip(runs, metrics, strict=True):
        assert found == metrics[0]
        assert "validation/champion" in found[1]
        assert all(torch.equal(a, b) for a, b in zip(flat(run.state_dict()), flat(runs[0].state_dict()), strict=True))


def test_processes_evaluate_a_part_each():
    algorithm = made("evo_dqn")
    genomes, task = algorithm.search.ask(), training_tasks(algorithm, 2)
    whole, spent = algorithm._evaluate(genomes, task, 1, None, "fitness")
    parts = []
    for rank in range(4):
        algorithm.processes = type("Part", (Processes,), {"sum": lambda self, values: values})(4, rank)
        parts.append(algorithm._evaluate(genomes, task, 1, None, "fitness"))
    assert torch.equal(sum(returns for returns, _ in parts), whole)
    assert sum(cost for _, cost in parts) == spent
    assert all((returns != 0).any() for returns, _ in parts)


def test_fitness_is_the_return_after_the_lifetime():
    """As by hand: one individual, one task after the other, its adapted policy in episodes of its own."""
    algorithm = made("es_dqn", {"algo.lifetime.lr": 0.5})
    genomes, task = algorithm.search.ask()[1:2], training_tasks(algorithm, 2)
    returns, spent = algorithm._evaluate(genomes, task, 3, None, "fitness")
    life = algorithm._begin(genomes, task, torch_rng(0, "fitness", "life", "0"))
    life.learn()
    policy = NetworkPolicy(algorithm.learner, life.params)
    rngs = torch_rng(0, "fitness", "episodes", "0"), torch_rng(0, "policy")
    (found,), lengths = run_episodes(algorithm.family, task, policy, 3, *rngs)
    assert torch.equal(returns[0], found.double().mean(1))
    assert spent == int(lengths.sum() + life.env_steps.sum())
    assert life.gradient_steps == 1


def test_dynamics_that_draw_must_say_so(monkeypatch):
    """Copies of a task would otherwise draw different numbers."""
    algorithm = made("es_dqn")
    calm = algorithm.family.dynamics

    def windy(state, action, task, rng):
        state, reward, terminated = calm(state, action, task, rng)
        return state + torch.randn(state.shape, generator=rng) / 100, reward, terminated

    task, life = training_tasks(algorithm, 2), SimpleNamespace(params=fresh(algorithm.learner, 3, torch_rng(0, "weights")))
    algorithm._measure(life, task, 3, 1, 5, "fitness")
    monkeypatch.setattr(algorithm.family, "dynamics", windy)
    with pytest.raises(RuntimeError, match="draw random numbers: set stochastic = True"):
        algorithm._measure(life, task, 3, 1, 5, "fitness")


def test_a_generation_has_tasks_in_common_and_the_next_has_others():
    algorithm = made("evo_dqn", {"algo.tasks": 10, "algo.fitness.tasks": 3})
    calls = pretended(algorithm, first_gene)
    algorithm.task = {"number": torch.arange(10.0)}
    for _ in range(6):
        algorithm.train_step()
    numbers = [tuple(task["number"].tolist()) for _, _, task in calls]
    assert all(len(set(drawn)) == 3 for drawn in numbers)
    assert len(set(numbers)) > 3
    assert algorithm.env_steps == 6 * 7


def test_numbers_of_a_generation():
    algorithm = made("evo_dqn", {"algo.search.population": 5})
    pretended(algorithm, lambda genomes: torch.tensor([[4.0, 6.0], [0.0, 2.0], [3.0, 3.0], [1.0, 3.0], [9.0, -1.0]]))
    found = algorithm.train_step()
    expected = {"best": 5, "mean": 3, "quantile_25": 2, "median": 3, "quantile_75": 4}
    assert {k: v for k, v in found.items() if k.startswith("fitness/")} == pytest.approx(
        {f"fitness/{k}": v for k, v in expected.items()}
    )


@pytest.mark.parametrize(("ranks", "expected"), [(False, [5.5, -1.5, -1.0]), (True, [2.0, 1.75, 2.25])])
def test_ranks_make_returns_comparable(ranks, expected):
    """Three individuals: ranks 1, 2, 3 on the first task, 3 and twice (1 + 2) / 2 on the second."""
    algorithm = made("evo_dqn", {"algo.search.population": 3, "algo.fitness.ranks": ranks})
    pretended(algorithm, lambda genomes: torch.tensor([[1.0, 10.0], [2.0, -5.0], [3.0, -5.0]]))
    told = []
    algorithm.search.tell = lambda fitness: (told.append(fitness.tolist()), {})[1]
    algorithm.train_step()
    assert told == [pytest.approx(expected)]


# -- the champion


def test_the_champion_is_chosen_on_validation_tasks():
    """The second on training tasks is the best on others."""
    algorithm = made("evo_dqn", {"algo.validation.candidates": 3, "algo.search.population": 8})
    genomes = algorithm.search.ask().clone()
    order = first_gene(genomes).argsort(descending=True)
    second = genomes[order[1]]
    calls = pretended(algorithm, first_gene, lambda genomes: -(genomes - second).abs().sum(1))
    found = algorithm.train_step()
    assert torch.equal(algorithm.champion, second[None])
    assert found["validation/champion"] == 0
    assert [name for name, *_ in calls] == ["fitness", "validation"]
    _, candidates, _ = calls[1]
    assert torch.equal(candidates[2:], genomes[order[:3]])
    assert torch.equal(candidates[1], algorithm.search.best())
    spread = -(genomes[order[:3]] - second).abs().sum(1).mean()
    assert found["validation/candidates"] == pytest.approx(float(spread), rel=1e-5)


def test_the_champion_stays_until_there_is_a_better_one():
    algorithm = made("evo_dqn", {"algo.validation.candidates": 2, "algo.validation.every": 1})
    start = algorithm.genome.start
    calls = pretended(algorithm, first_gene, lambda genomes: -(genomes - start).abs().sum(1))
    for _ in range(3):
        algorithm.train_step()
        assert torch.equal(algorithm.champion, start[None])
    assert all(torch.equal(genomes[0], start) for name, genomes, _ in calls if name == "validation")


def test_without_candidates_the_champion_is_the_searchs_own():
    algorithm = made("evo_dqn")
    calls = pretended(algorithm, first_gene)
    for _ in range(2):
        algorithm.train_step()
    assert torch.equal(algorithm.champion, algorithm.search.best()[None])
    assert {name for name, *_ in calls} == {"fitness"}


def test_validation_is_as_often_as_it_says():
    algorithm = made("evo_dqn", {"algo.validation.candidates": 1, "algo.validation.every": 3})
    calls = pretended(algorithm, first_gene, first_gene)
    found = ["validation/champion" in algorithm.train_step() for _ in range(7)]
    assert found == [True, False, True, False, False, True, False]
    assert [name for name, *_ in calls].count("validation") == 3


def test_validation_tasks_are_no_training_tasks():
    algorithm = made("evo_dqn", {"algo.validation.candidates": 1})
    calls = pretended(algorithm, first_gene, first_gene)
    algorithm.train_step()
    fitness, validation = (task for _, _, task in calls)
    drawn = algorithm.family.sample_tasks(2, "validation", numpy_rng(0, "tasks", "candidates"))
    known = {tuple(row) for row in torch.stack(list(algorithm.task.values()), 1).tolist()}
    assert {tuple(row) for row in torch.stack(list(fitness.values()), 1).tolist()} < known
    assert not {tuple(row) for row in torch.stack(list(validation.values()), 1).tolist()} & known
    assert all(torch.equal(validation[k], v) for k, v in drawn.items())


def test_folds_of_training_tasks_take_turns():
    algorithm = made(
        "evo_dqn", {"algo.tasks": 7, "algo.fitness.tasks": 4, "algo.validation.folds": 3, "algo.validation.candidates": 1}
    )
    calls = pretended(algorithm, first_gene, first_gene)
    algorithm.task = {"number": torch.arange(7)}
    for _ in range(8):  # validation at the first and at every second
        algorithm.train_step()
    folds = [{0, 3, 6}, {1, 4}, {2, 5}]
    turns = iter([0, 0, 1, 2, 0])
    generation, seen = 0, set()
    for name, _, task in calls:
        numbers = task["number"].tolist()
        if name == "fitness":
            now, generation = folds[generation // 2 % 3], generation + 1
            assert len(numbers) == len(set(numbers)) == 4
            assert not now & set(numbers)
            seen |= set(numbers)
        else:
            assert set(numbers) == now == folds[next(turns)]
    assert seen == set(range(7))
    assert next(turns, None) is None


# -- one lifetime for all generations


HYPER = {"algo.genome.architecture": GONE}


def followed(algorithm, generations):
    """Genomes, and of each its parent's number, of each generation; the last fitness."""
    history, told = [], []
    tell = algorithm.search.tell
    algorithm.search.tell = lambda fitness: (told.append(fitness), tell(fitness))[1]
    for _ in range(generations):
        history.append((algorithm.search.ask().clone(), algorithm.search.parents.clone()))
        algorithm.train_step()
    return history, told[-1]


def test_children_have_their_parents_weights_before_they_learn(monkeypatch):
    algorithm = made("adrl", HYPER)
    before = []

    def learn(life, learn=Life.learn):
        before.append((life.params, life.target, dict(life.optimizer.first), life.traits["hyper"]["lr"]))
        learn(life)

    monkeypatch.setattr(Life, "learn", learn)
    for generation in range(3):
        parents = algorithm.search.parents
        rows = (2 * parents[:, None] + torch.arange(2)).flatten()
        genomes, lives = algorithm.search.ask(), algorithm.lives
        after = None if lives is None else (lives.params, lives.target, dict(lives.optimizer.first))
        algorithm.train_step()
        *inherited, lr = before[-1]
        assert torch.equal(lr, algorithm.genome.decode(genomes)["hyper"]["lr"].repeat_interleave(2))
        if generation > 0:
            assert parents.tolist() != list(range(6))
            for child, parent in zip(inherited, after, strict=True):
                assert all(torch.equal(v, parent[k][rows]) for k, v in child.items())


@pytest.mark.parametrize("gain", [True, False])
def test_luck_at_birth_is_worth_nothing(gain):
    """What a line of descent got before it learned anything is taken off for as long as the line lasts, saved or not."""
    algorithm = made("adrl", {"algo.fitness.gain": gain})
    born, parents = None, torch.arange(6)
    for generation in range(3):
        measured, told, before = [], [], algorithm.env_steps
        measure, tell = algorithm._measure, algorithm.search.tell

        def seen(life, *more, measure=measure, measured=measured):
            measured.append((life.gradient_steps, *measure(life, *more)))
            return measured[-1][1:]

        algorithm._measure = seen
        algorithm.search.tell = lambda fitness, tell=tell, told=told: (told.append(fitness), tell(fitness))[1]
        found = algorithm.train_step()
        assert [steps for steps, *_ in measured] == [0] * (gain and generation == 0) + [[2], [6], [10]][generation]
        assert algorithm.env_steps - before == 6 * 2 * 2 * 2 * 4 + sum(int(lengths.sum()) for *_, lengths in measured)
        if generation == 0:
            born = measured[0][1] if gain else torch.zeros(6, 2, dtype=torch.float64)
        born, returns = born[parents], measured[-1][1]
        assert torch.equal(told[0], (returns - born).mean(1))
        assert found["fitness/best"] == float(returns.mean(1).max()), "people see returns"
        parents = algorithm.search.parents.clone()
        assert not gain or generation == 2 or not torch.equal(born[parents], born)
        state = algorithm.state_dict()
        algorithm = made("adrl", {"algo.fitness.gain": gain})
        algorithm.load_state_dict(state)


def test_patience_leaves_a_generation_to_select_for():
    algorithm = made("adrl", {"algo.search.patience": 2})  # of four generations
    history, _ = followed(algorithm, 4)
    assert [bool((parents == torch.arange(6)).all()) for _, parents in history] == [True, True, True, False]


@pytest.mark.parametrize("search", [option("search", "genetic") | {"elites": 0}, option("search", "random")])
def test_lines_of_descent(search):
    algorithm = made("adrl", {"algo.search": search | {"population": 6}})
    history, fitness = followed(algorithm, 4)
    number = torch.arange(6)
    expected = []
    for genomes, parents in reversed(history):
        expected.insert(0, genomes[number])
        number = parents[number]
    assert torch.equal(algorithm.line, torch.stack(expected))
    assert torch.equal(algorithm.champion, algorithm.line[:, fitness.argmax()])
    assert len(algorithm.champion.unique(dim=0)) > 1, "the settings are a schedule"


def test_the_schedule_is_chosen_on_validation_tasks():
    """The lines of descent of the two fittest, and of the fittest how its own began and how it ended."""
    algorithm = made("adrl", {"algo.validation.candidates": 2, "algo.validation.every": 5})
    _, fitness = followed(algorithm, 4)
    (first, second), gradient_steps = fitness.argsort(descending=True, stable=True)[:2], algorithm.lives.gradient_steps
    ended, began = (algorithm.line[generation, first].expand(4, -1) for generation in (3, 0))
    candidates = [algorithm.line[:, first], algorithm.line[:, second], ended, began]
    algorithm.iteration = 5  # now
    for best in range(4):

        def measure(life, task, copies, episodes, steps, name, best=best):
            assert (copies, name, life.gradient_steps) == (4, "validation", gradient_steps)
            assert all(torch.equal(v, algorithm.held_out[k]) for k, v in task.items())
            return (torch.arange(4) == best).double()[:, None].expand(4, 2), torch.zeros(8)

        algorithm._measure = measure
        algorithm._choose(None, fitness)
        assert torch.equal(algorithm.champion, candidates[best])


def test_settings_that_never_change_are_tried_once():
    search = option("search", "random") | {"population": 6, "redraw": False}
    algorithm = made("adrl", {"algo.search": search, "algo.validation.candidates": 2, "algo.validation.every": 5})
    _, fitness = followed(algorithm, 4)
    order = fitness.argsort(descending=True, stable=True)
    assert torch.equal(algorithm._schedules(order), algorithm.line[:, order[:4]])


def test_the_schedule_is_replayed_on_new_tasks(monkeypatch):
    """Settings and architecture, step by step; beyond its end it goes on as it ended."""
    algorithm = made("adrl")
    followed(algorithm, 4)
    assert len(algorithm.champion.unique(dim=0)) > 1
    seen = []

    def learn(life, learn=Life.learn):
        seen.append((life.traits["hyper"], {k: v for k, v in life.params.items() if k.startswith("structure.")}))
        learn(life)

    monkeypatch.setattr(Life, "learn", learn)
    task = algorithm.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    curve = list(algorithm.adapt(task, Budget(6), torch_rng(0, "adapt")))
    assert [one.gradient_steps for one in curve] == [0, 2, 6, 10, 14, 18, 22]  # 2 iterations of 2 updates, but for the first
    for step, (hyper, structure) in enumerate(seen):
        said = algorithm.genome.decode(algorithm.champion[min(step, 3)][None])
        for kind, values in (("hyper", hyper), ("structure", structure)):
            assert values.keys() == said[kind].keys()
            assert all(torch.equal(v, said[kind][k].expand_as(v)) for k, v in values.items())


def test_everyone_learns_the_same_tasks_throughout():
    algorithm = made("adrl", HYPER)
    algorithm.train_step()
    env = algorithm.lives.env
    for k, v in training_tasks(algorithm, 2).items():
        assert torch.equal(env.task[k][:, 0], v.repeat(6))
    algorithm.train_step()
    assert algorithm.lives.env is env


# -- meta-testing


@every_evolution
def test_what_adaptation_costs(algo):
    algorithm = made(algo, env="classic_mix")
    found = algorithm.train_step()
    assert found["fitness/best"] >= found["fitness/median"]
    task = algorithm.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    for adapt in (algorithm.adapt, algorithm.adapt_from_scratch):
        curve = list(adapt(task, Budget(2), torch_rng(0, "adapt")))
        assert [one.step for one in curve] == [0, 1, 2]
        assert (curve[0].gradient_steps, curve[0].env_steps) == (0, 0)
        assert 0 < curve[1].gradient_steps < curve[2].gradient_steps
        assert 0 < curve[1].env_steps <= curve[2].env_steps
        for one in curve:
            assert {len(v) for v in one.policy.params.values()} == {3}
            obs = algorithm.family.make(task, 2, torch_rng(0)).obs
            assert one.policy.act(one.policy.start(2, torch_rng(0)), obs)[0].shape == (3, 2)


def test_a_champion_without_a_lifetime_is_what_it_is():
    algorithm = made("evo_dqn", {"algo.lifetime": option("lifetime", "none"), "algo.genome.rates": GONE})
    algorithm.train_step()
    task = algorithm.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    (curve,) = algorithm.adapt(task, Budget(2), torch_rng(0, "adapt"))
    assert (curve.step, curve.gradient_steps, curve.env_steps) == (0, 0, 0)
    champion = algorithm.genome.decode(algorithm.champion)["init"]
    assert all(torch.equal(v, champion[k].expand_as(v)) for k, v in curve.policy.params.items())


@pytest.mark.parametrize("search", ["genetic", "openai_es", "snes"])
def test_generations_become_fitter(search):
    """Neuroevolution of one policy for goals that it does not see."""
    changes = {
        "algo.lifetime": option("lifetime", "none"),
        "algo.genome.rates": GONE,
        "algo.search": option("search", search) | {"population": 32},
        "algo.fitness.tasks": 4,
    }
    algorithm = made("evo_dqn", changes, env="navigation_2d")
    means = [algorithm.train_step()["fitness/mean"] for _ in range(12)]
    assert means[0] < -14
    assert means[-1] > -12


# -- looking


def test_a_portrait_of_a_population():
    algorithm = made("evo_hyper")
    algorithm.train_step()
    diagnostics = algorithm.diagnostics()
    population = algorithm.genome.decode(algorithm.search.ask())["hyper"]
    assert diagnostics.histograms.keys() == {f"genome/hyper/{k}" for k in population}
    assert all(torch.equal(diagnostics.histograms[f"genome/hyper/{k}"], v) for k, v in population.items())
    lr, champion = population["lr"], algorithm.genome.decode(algorithm.champion)["hyper"]["lr"]
    cells = [f"{float(x):.4g}" for x in (champion, lr.min(), lr.median(), lr.max())]
    assert f"| hyper/lr | {' | '.join(cells)} |" in diagnostics.texts["genome/champion"].splitlines()
    assert diagnostics.figures == {}


def test_a_portrait_of_a_schedule():
    algorithm = made("adrl")
    followed(algorithm, 3)
    diagnostics = algorithm.diagnostics()
    head, _, *rows = diagnostics.texts["genome/schedule"].splitlines()
    assert head.startswith("| step | architecture/layers |")
    assert len(rows) == 3
    layers = algorithm.genome.describe(algorithm.champion)["architecture/layers"]
    assert [row.split(" | ")[1] for row in rows] == [str(int(n)) for n in layers]
    panels = {axes.get_title() for axes in diagnostics.figures["genome/lineage"].axes}
    assert {name.removeprefix("genome/") for name in diagnostics.histograms} <= panels


# -- what cannot be


LR = "algo.genome.hyper.ranges.lr"
WRONG = {
    "one fold": ("evo_dqn", {"algo.validation.folds": 1}, ["validation.folds (1) must be 0, or from 2", "tasks (4)"]),
    "more folds than tasks": ("evo_dqn", {"algo.validation.folds": 5}, ["validation.folds (5)", "tasks (4)"]),
    "too few tasks": ("evo_dqn", {"algo.fitness.tasks": 5}, ["fitness.tasks (5) must not be above", "(4)"]),
    "too few tasks but for a fold": (
        "evo_dqn",
        {"algo.tasks": 5, "algo.validation.folds": 2, "algo.fitness.tasks": 3},
        ["fitness.tasks (3) must not be above the training tasks in use (2)"],
    ),
    "no parts": ("evo_dqn", {"algo.genome": {}}, ["algo.genome={}"]),
    "a life that does not go on": (
        "adrl",
        {"algo.lifetime": option("lifetime", "gradient")},
        ["adrl needs an algo.lifetime that goes on in the next generation: dqn"],
    ),
    "no parents": (
        "adrl",
        {"algo.search": option("search", "snes")},
        ["adrl needs an algo.search whose individuals descend", "genetic, or random"],
    ),
    "a life for another time": (
        "adrl",
        {"algo.lifetime.steps": 3},
        ["in adrl, a generation is one adaptation step", "algo.lifetime.steps (3) must be train.iterations (4)"],
    ),
    "patience without end": (
        "adrl",
        {"algo.search.patience": 3},
        ["algo.search.patience (3) is too long: no generation would live after a selection", "(4); at most 2"],
    ),
    "initial weights and one's parents'": (
        "adrl",
        {"algo.genome": {"init": option("genome", "init")}},
        ["algo.genome: initial weights mean nothing in adrl"],
    ),
    "folds of one life": (
        "adrl",
        {"algo.validation.folds": 2, "algo.fitness.tasks": 1},
        ["algo.validation.folds=2: no such key"],
    ),
    "chunks of one life": ("adrl", {"algo.chunk": 2}, ["algo.chunk=2: no such key"]),
    "rates without learning": (
        "evo_dqn",
        {"algo.lifetime": option("lifetime", "none")},
        ["algo.genome: rates mean nothing in algo.lifetime.module=none"],
    ),
    "a rule without learning": (
        "learned_optimizer",
        {"algo.lifetime": option("lifetime", "none")},
        ["algo.genome: optimizer mean nothing in algo.lifetime.module=none"],
    ),
    "an unknown hyper-parameter": (
        "evo_hyper",
        {"algo.genome.hyper.ranges.momentum": {"low": 0.0, "high": 1.0, "spacing": "linear"}},
        [
            "algo.genome.hyper.ranges: no momentum in algo.lifetime.module=dqn",
            "known: lr, gamma, epsilon_end, epsilon_decay, batch, target_every",
        ],
    ),
    "a hyper-parameter of another lifetime": (
        "evo_hyper",
        {"algo.lifetime": option("lifetime", "gradient")},
        [
            "algo.genome.hyper.ranges: no batch, epsilon_decay, epsilon_end, gamma, target_every",
            "in algo.lifetime.module=gradient; known: lr",
        ],
    ),
    "weights of another architecture": (
        "evo_dqn",
        {"algo.genome.architecture": {"module": "architecture", "scale": 0.1, "narrowest": 4, "activations": True}},
        ["algo.genome: initial weights and architecture do not go together"],
    ),
    "more than is drawn": (
        "evo_hyper",
        {"algo.genome.hyper.ranges.batch.high": 9},
        ["algo.genome.hyper.ranges go too far at their high end", "hyper.batch (9) must not be above largest_batch (8)"],
    ),
    "a discount beyond one": (
        "evo_hyper",
        {"algo.genome.hyper.ranges.gamma": {"low": 0.5, "high": 1.5, "spacing": "linear"}},
        [
            "algo.genome.hyper.ranges go too far at their high end: "
            "algo.lifetime.hyper.gamma=1.5: must be a number >= 0 and < 1",
        ],
    ),
    "a rate below zero": (
        "evo_hyper",
        {f"{LR}.low": -1.0, f"{LR}.spacing": "linear"},
        ["algo.genome.hyper.ranges go too far at their low end: algo.lifetime.hyper.lr=-1.0: must be a number > 0"],
    ),
    "a logarithm of zero": ("evo_hyper", {f"{LR}.low": 0.0}, [f"{LR}: spacing=log does not go with [0, 0.03]"]),
    "a range the wrong way": ("evo_hyper", {f"{LR}.low": 1.0}, [f"{LR}: low (1) must be below high (0.03)"]),
    "layers of different sizes": (
        "adrl",
        {"learner.network.hidden": [8, 16]},
        ["algo.genome.architecture needs learner.network.hidden of one size"],
    ),
    "layer norm": ("adrl", {"learner.network.layer_norm": True}, ["algo.genome.architecture needs", "layer_norm=false"]),
    "no room": (
        "adrl",
        {"algo.genome.architecture.narrowest": 8},
        ["algo.genome.architecture.narrowest (8) must be below the widest layer (8)"],
    ),
    "nothing to adapt": (
        "evo_dqn",
        {"algo.lifetime.scope": "context"},
        ["no weights for scope=context; set learner.network.context above 0"],
    ),
    "a small replay": (
        "evo_hyper",
        {"algo.lifetime.capacity": 7},
        ["algo.lifetime: capacity must hold at least the envs x env_steps"],
    ),
    "a large batch": (
        "evo_hyper",
        {"algo.lifetime.hyper.batch": 9.0},
        ["algo.lifetime: hyper.batch (9) must not be above largest_batch (8)"],
    ),
    "no such part": (
        "evo_dqn",
        {"algo.genome.init.module": "weights", "algo.lifetime.module": "life", "algo.search.module": "genes"},
        [
            "algo.genome.init.module=weights: no such module; known: architecture, hyper, init, optimizer, rates",
            "algo.lifetime.module=life: no such module; known: dqn, gradient, none",
            "algo.search.module=genes: no such module",
        ],
    ),
    "everything at once": (
        "evo_dqn",
        {
            "algo.search.population": -1,
            "algo.genome.init.scale": -1.0,
            "algo.genome.rates.schedul": True,
            "algo.lifetime.support.rollouts": 0,
            "algo.chunk": 0,
            "train.iterations": 0,
        },
        [
            "algo.search.population=-1: must be an integer >= 2 (genomes of a generation)",
            "algo.genome.init.scale=-1.0: must be a number > 0",
            "algo.genome.rates.schedul",
            "did you mean algo.genome.rates.schedule?",
            "algo.lifetime.support.rollouts=0",
            "algo.chunk=0",
            "train.iterations=0",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_said_by_key(name):
    algo, changes, words = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        made(algo, changes)
    for word in words:
        assert word in str(caught.value)


def test_a_genome_of_another_size_is_refused():
    algorithm = made("evo_hyper")
    with pytest.raises(ValueError, match="a genome has 6 genes, not 7"):
        algorithm.load_weights({"champion": torch.zeros(1, 7)})

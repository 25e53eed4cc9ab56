"""Adaptation by demonstrations against known answers: Ziebart's gradient, Bayes by hand, the meta-gradient by differences."""

import json

import pytest
import torch
from conftest import compose_train, load, slow_if, tiny
from torch.nn.functional import one_hot

from metarl_cli.adaptation.demonstrations import Examples, likelihood_gradients, likelihood_loss, numbers, read
from metarl_cli.adaptation.gradient import normalised
from metarl_cli.algos.bayes_irl import log_likelihoods
from metarl_cli.cli import main as cli
from metarl_cli.envs.planning import Process, soft_value_iteration
from metarl_cli.errors import UserError
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.interfaces import Budget
from metarl_cli.networks.imitation import RewardModel
from metarl_cli.runs.build import build
from metarl_cli.runs.demonstrations import read_demonstrations, write_demonstrations
from metarl_cli.seeding import numpy_rng, torch_rng

IRL = ["mandril", "pretrain_irl", "meta_bc"]


def shown(deterministic: bool, tasks=2, states=6, actions=3, horizon=7, episodes=40, features=4) -> Examples:
    """Demonstrations in random processes by somebody with another reward."""
    rng = torch_rng(0, "processes")
    if deterministic:
        transition = one_hot(torch.randint(states, (tasks, states, actions), generator=rng), states).to(torch.float64)
    else:
        transition = torch.rand(tasks, states, actions, states, generator=rng) ** 4
        transition = transition / transition.sum(-1, keepdim=True)
    process = Process(transition, torch.randn(tasks, states, features, generator=rng), horizon, 2.0)
    table = process.choices(process.features @ torch.randn(features, generator=rng)).exp()
    state, row, found = torch.randint(states, (tasks, episodes), generator=rng), torch.arange(tasks)[:, None], []
    for t in range(horizon):
        action = torch.multinomial(table[row, t, state].flatten(0, 1), 1, generator=rng).view(tasks, episodes)
        found.append((state, action))
        state = torch.multinomial(transition[row, state, action].flatten(0, 1), 1, generator=rng).view(tasks, episodes)
    seen, acted = (torch.stack(each, 1) for each in zip(*found, strict=True))
    return Examples(process, seen, acted, torch.ones(seen.shape))


def linear(examples: Examples):
    """A reward that is linear in the features, and its weights for each task."""
    tasks, _, features = examples.process.features.shape
    weight = torch.randn(tasks, 1, features, generator=torch_rng(0, "weights"))
    return RewardModel([], features), {"reward.out.weight": weight, "reward.out.bias": torch.zeros(tasks, 1)}


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_gradient_is_the_difference_of_feature_expectations(deterministic, float64):
    """The model's expectations less the demonstrated ones, computed forwards; autograd's goes backwards through the plan."""
    examples = shown(deterministic)
    model, params = linear(examples)
    found = likelihood_gradients(model, params, examples)["reward.out.weight"][:, 0]
    process, beta = examples.process, examples.process.rationality
    table = model.choices(params, process).exp()
    tasks, horizon, episodes = examples.state.shape
    for m in range(tasks):
        features, moves = process.features[m], process.transition[m]
        ahead, difference = torch.zeros_like(features), torch.zeros(features.shape[1])  # expected from a state on
        for t in reversed(range(horizon)):
            after = torch.einsum("san,nf->saf", moves, features + ahead)
            ahead = torch.einsum("sa,saf->sf", table[m, t], after)
            state, action = examples.state[m, t], examples.action[m, t]
            difference += (ahead[state] - after[state, action]).sum(0)
        torch.testing.assert_close(found[m], beta * difference / (horizon * episodes), rtol=0, atol=1e-10)
        if deterministic:  # then it telescopes to counts: expected from the start on, less those that were met
            met = features[examples.state[m, 1:]].sum((0, 1))
            last = moves[examples.state[m, -1], examples.action[m, -1]] @ features
            counts = ahead[examples.state[m, 0]].sum(0) - met - last.sum(0)
            torch.testing.assert_close(found[m], beta * counts / (horizon * episodes), rtol=0, atol=1e-10)


def test_the_gradient_is_the_slope(float64):
    examples = shown(False)
    model, params = linear(examples)
    found, step = likelihood_gradients(model, params, examples)["reward.out.weight"], 1e-5
    for f in range(4):
        slopes = []
        for sign in (1, -1):
            weight = params["reward.out.weight"].clone()
            weight[..., f] += sign * step
            slopes.append(likelihood_loss(model, params | {"reward.out.weight": weight}, examples))
        torch.testing.assert_close(found[:, 0, f], (slopes[0] - slopes[1]) / (2 * step), rtol=0, atol=1e-8)


def test_what_follows_an_episode_counts_nothing(float64):
    examples = shown(False)
    model, params = linear(examples)
    short = Examples(examples.process, *(x[:, :3] for x in examples[1:]))
    weight = examples.weight.clone()
    weight[:, 3:] = 0
    expected = likelihood_loss(model, params, short)
    torch.testing.assert_close(likelihood_loss(model, params, examples._replace(weight=weight)), expected)


def small(algo: str, *overrides: str):
    """On grids of 3x3 cells, so that differences are quick."""
    grid = ["env=sprite_grid", "env.size=3", "env.features=3", "env.horizon=4", "algo.tasks=2", "algo.query=3"]
    hidden = "algo.model.hidden=[4,4]"
    return build(compose_train(f"algo={algo}", *grid, hidden, "hardware=cpu", *overrides)).algorithm


CASES = [("mandril", True), ("mandril", False), ("meta_bc", True)]


@pytest.mark.parametrize(("algo", "normalise"), slow_if(CASES, lambda case: case != CASES[0]))
def test_the_second_order_meta_gradient_is_the_slope(algo, normalise, float64):
    algorithm = small(
        algo, "algo.inner.order=2", f"algo.inner.normalise={normalise}", "algo.inner.steps=2", "algo.inner.lr=0.2"
    )
    support, query = (algorithm._demonstrated(num, stream) for num, stream in ((2, "support"), (3, "query")))
    _, gradients = algorithm.meta_gradient(support, query)
    step = 1e-5
    with torch.no_grad():
        for weights, gradient in zip(algorithm.learned, gradients, strict=True):
            for i in range(0, weights.numel(), 5):
                losses = []
                for sign in (1, -2, 1):
                    weights.view(-1)[i] += sign * step
                    params = algorithm.adapted(algorithm.meta, support, 2)
                    losses.append(float(likelihood_loss(algorithm.model, params, query).mean()))
                slope = (losses[0] - losses[1]) / (2 * step)
                assert float(gradient.view(-1)[i]) == pytest.approx(slope, abs=1e-7, rel=1e-4)


def test_the_first_order_meta_gradient_is_that_at_the_adapted_weights(float64):
    algorithm = small("mandril", "algo.inner.rates=fixed")
    support, query = algorithm._demonstrated(2, "support"), algorithm._demonstrated(3, "query")
    _, gradients = algorithm.meta_gradient(support, query)
    with torch.no_grad():
        params = algorithm.adapted(algorithm.meta, support, 2)
    own = likelihood_gradients(algorithm.model, params, query)
    for gradient, each in zip(gradients, own.values(), strict=True):
        torch.testing.assert_close(gradient, each.mean(0))


def test_a_normalised_gradient_has_length_one(float64):
    found = normalised({"a": torch.randn(3, 2), "b": torch.randn(3, 4, 5)})
    norm = torch.cat([value.flatten(1) for value in found.values()], 1).norm(dim=1)
    torch.testing.assert_close(norm, torch.ones(3))
    zero = normalised({"a": torch.zeros(1, 2, requires_grad=True)})["a"]
    assert torch.equal(zero, torch.zeros(1, 2))


def test_the_posterior_is_that_by_hand(float64):
    """Every candidate's own soft-optimal probabilities, multiplied step by step."""
    module, config = load("env", compose_train("env=gridworld", "env.size=3", "env.horizon=3").env)
    family = module.Family(config)
    task = family.sample_tasks(2, "test", numpy_rng(0, "tasks"))
    given = demonstrate(family, task, 3, torch_rng(0, "demonstrations"))
    candidates, examples = family.candidates(task), read(family, given)
    found = log_likelihoods(candidates, examples).sum(-1).softmax(-1)
    assert candidates.shape == (2, 5, 9)
    for m in range(2):
        weights = []
        for goal in family.goals.tolist():
            named = family.named_task({"goal_x": goal % 3, "goal_y": goal // 3})
            _, choices = soft_value_iteration(*family.model(named), 3, family.rationality)
            weight = 1.0
            for n in range(3):
                for t in range(3):
                    state, action = int(examples.state[m, t, n]), int(examples.action[m, t, n])
                    weight *= float(choices[t, 0, state, action].exp())
            weights.append(weight)
        expected = torch.tensor(weights) / sum(weights)
        torch.testing.assert_close(found[m], expected, rtol=0, atol=1e-12)


def adaptation(algo: str, most: int, env="sprite_grid", *overrides: str):
    parts = build(compose_train(f"algo={algo}", f"env={env}", "hardware=cpu", *overrides))
    task = parts.family.sample_tasks(30, "test", numpy_rng(0, "tasks"))
    return parts.family, task, list(parts.algorithm.adapt(task, Budget(most), torch_rng(0, "support")))


@pytest.mark.parametrize("env", slow_if(["sprite_grid", "gridworld"], lambda env: env == "sprite_grid"))
def test_bayes_comes_to_know_the_reward(env):
    family, task, steps = adaptation("bayes_irl", 10, env)
    below = [float((family.optimum(task) - family.expected_return(task, each.policy)).mean()) for each in steps]
    assert [each.step for each in steps] == [0, 1, 2, 5, 10]
    assert [each.env_steps for each in steps] == [15 * each.step for each in steps]
    assert below[0] > 1 > below[1] >= below[-1]
    assert 0 <= below[-1] < 0.1


@pytest.mark.slow
def test_from_scratch_explains_its_demonstrations_and_less_of_a_new_grid():
    family, task, steps = adaptation("maxent_irl", 5)
    before, after = steps[0], steps[-1]
    here = family.optimum(task) - family.expected_return(task, after.policy)
    place = after.demonstrated.demonstrations.task
    there = family.optimum(place) - family.expected_return(place, after.demonstrated.policy)
    assert float(there.mean()) < 0.6 * float(here.mean())
    assert float(here.mean()) < 0.5 * float((family.optimum(task) - family.expected_return(task, before.policy)).mean())
    assert not torch.equal(task["grid"], place["grid"])


def test_the_numbers_of_demonstrations():
    assert numbers(1) == [0, 1]
    assert numbers(20) == [0, 1, 2, 5, 10, 20]
    assert numbers(7) == [0, 1, 2, 5, 7]


@pytest.mark.parametrize("algo", ["mandril", "maxent_irl", "bayes_irl"])
def test_other_families_are_refused(algo):
    with pytest.raises(UserError, match="needs a table of states that it observes"):
        build(compose_train(f"algo={algo}", "env=cartpole_family"))
    if algo == "bayes_irl":
        with pytest.raises(UserError, match="no short list of the rewards"):
            build(compose_train(f"algo={algo}", "env=tabular_mdp"))


@pytest.mark.parametrize("algo", slow_if(IRL, lambda algo: algo != "mandril"))
def test_every_table_can_be_learned_from(algo):
    for env in ("gridworld", "tabular_mdp"):
        parts = build(compose_train(f"algo={algo}", f"env={env}", *tiny(algo), "env.horizon=5"))
        assert all(value == value for value in parts.algorithm.train_step().values())
        task = parts.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
        *_, last = parts.algorithm.adapt(task, Budget(2), torch_rng(0, "support"))
        assert last.policy.table.shape == (3, 5, parts.family.num_states, 5)


def sprites():
    module, config = load("env", compose_train("env=sprite_grid").env)
    return module.Family(config)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """``metarl adapt`` of a small run to a named task."""
    run = tmp_path_factory.mktemp("demonstrations") / "run"
    assert cli.main(["train", "algo=mandril", "env=sprite_grid", *tiny("mandril"), f"run={run}"]) == 0
    return ["adapt", f"run={run}", "task.first_goal=3", "task.grid=5", "hardware=cpu"]


EPISODES = [{"states": [0, 1, 9], "actions": [2, 1, 0]}, {"states": [63], "actions": [4]}]


@pytest.mark.slow
def test_a_run_is_adapted_to_demonstrations_of_ones_own(words, tmp_path, capsys):
    (mine := tmp_path / "mine.json").write_text(json.dumps({"task": {"grid": 6}, "episodes": EPISODES}))
    assert cli.main([*words, f"demonstrations={mine}", f"out={tmp_path / 'out'}"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("2 demonstrations", "below optimum, 2", "where demonstrated, 2"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"reward.png", "demonstrated_reward.png", "policy.pt", "adaptation.png"} <= names
    written = json.loads((tmp_path / "out" / "demonstrations.json").read_text())
    assert written["episodes"] == EPISODES
    assert (written["task"]["first_goal"], written["task"]["grid"]) == (3, 6)


@pytest.mark.slow
def test_what_adapt_writes_it_reads(words, tmp_path):
    assert cli.main([*words, "steps=2", f"out={tmp_path / 'out'}"]) == 0
    given = tmp_path / "out" / "demonstrations.json"
    assert cli.main([*words, f"demonstrations={given}", f"out={tmp_path / 'again'}"]) == 0
    one, two = (json.loads((tmp_path / name / "adaptation.json").read_text()) for name in ("out", "again"))
    assert one["returns"] == two["returns"]


WRONG = [
    ({"episodes": [{"states": [0, 5], "actions": [1, 1]}]}, "action 1 never leads from state 0 to state 5"),
    ({"episodes": []}, "episodes: "),
    ({"task": {"hue": 1}, "episodes": EPISODES}, "no such task parameter: hue"),
    ({"episodes": [{"states": [0] * 10**6, "actions": [0]}] + EPISODES[1:] * 9_999}, "episode 1 has 1000000 states"),
    ({"episodes": EPISODES[1:] * 10_001}, "there are 10,001 episodes, and there can be 10,000"),
]


@pytest.mark.parametrize(("content", "said"), WRONG)
def test_demonstrations_that_make_no_sense_are_one_line(content, said, tmp_path):
    ours = sprites()
    (mine := tmp_path / "mine.json").write_text(json.dumps(content))

    def named(values):
        try:
            return ours.named_task(dict(values))
        except ValueError as error:
            raise UserError(str(error)) from error

    with pytest.raises(UserError, match=said):
        read_demonstrations(mine, ours, {}, named)


@pytest.mark.slow
def test_more_demonstrations_than_there_are_is_one_line(words, tmp_path, capsys):
    (mine := tmp_path / "mine.json").write_text(json.dumps({"episodes": EPISODES}))
    assert cli.main([*words, f"demonstrations={mine}", "steps=3"]) == 2
    assert "steps=3: there are 2 demonstrations in" in capsys.readouterr().err


def test_a_file_of_demonstrations_is_read_as_it_was_written(tmp_path):
    ours = sprites()
    task = ours.named_task({"first_goal": 3, "grid": 5})
    given = demonstrate(ours, task, 4, torch_rng(0, "demonstrations"))
    write_demonstrations(tmp_path / "own.json", ours, given)
    found = read_demonstrations(tmp_path / "own.json", ours, {"grid": 9}, lambda values: ours.named_task(dict(values)))
    assert all(torch.equal(found.task[name], value) for name, value in given.task.items())
    assert torch.equal(found.experience.obs, given.experience.obs)
    assert torch.equal(found.experience.action, given.experience.action)
    short = ours.recorded(task, [([0, 1, 9], [2, 1, 0]), ([63], [4])])
    assert short.experience.weight[0].T.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert not torch.equal(given.task["grid"], task["grid"])


def test_demonstrations_in_environments_that_no_file_tells_are_not_written(tmp_path):
    module, config = load("env", compose_train("env=tabular_mdp").env)
    processes = module.Family(config)
    given = demonstrate(processes, processes.named_task({}), 2, torch_rng(0, "demonstrations"))
    with pytest.raises(UserError, match="more than numbers"):
        write_demonstrations(tmp_path / "own.json", processes, given)


@pytest.mark.parametrize("algo", slow_if(["mandril", "maxent_irl", "bayes_irl"], lambda algo: algo != "bayes_irl"))
def test_memory_is_judged_by_tasks(algo):
    small = tiny(algo) if algo == "mandril" else []
    algorithm = build(compose_train(f"algo={algo}", "env=sprite_grid", *small)).algorithm
    few, many = (algorithm.cost_of_adapting(tasks, 1) for tasks in (10, 1000))
    assert few + 900 * 20_000 < many < 200 * few, "a task has 20 kB of features and places at least"
    if algo == "mandril":
        more = build(compose_train("algo=mandril", "env=sprite_grid", *small, "algo.tasks=1000")).algorithm
        sizes = [max(each.bytes for each in x.cost_of_training().passing) for x in (algorithm, more)]
        assert sizes[1] > 20 * sizes[0]
        assert more.cost_of_training().passing[0].key == "algo.tasks"


def test_too_many_kinds_are_one_line():
    ours = sprites()
    with pytest.raises(UserError, match=r"lower env\.kinds"):
        type(ours)(ours.config.model_copy(update={"kinds": 20_000}))

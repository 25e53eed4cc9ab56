"""What an adaptation uses: policies that are known to ignore their support, or to read one sign in it."""

import numpy as np
import pytest
import torch
from conftest import ENVS, TINY_REFERENCE, compose_train, inherited, short, slow_if, tiny

from metarl_cli.algos.reference import Reference
from metarl_cli.envs.changed import ChangedFamily, WithoutRewards
from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import UNKNOWN, Level, Levels
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.probe import BEFORE, OWN, choose, live_through, probe, supports
from metarl_cli.evaluation.probe_report import table
from metarl_cli.experience.rollout import rollout
from metarl_cli.interfaces import Adapted, Budget, Policy
from metarl_cli.progress import wide_console
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete, Spec

HORIZON = 4


class Switch(NativeFamily):
    """Action 1 has the reward ``gain``, action 0 has 0; an episode ends at the horizon, or after ``length`` steps."""

    parameters = {"gain": 1.0, "colour": 0.0, "length": 9.0}

    def __init__(self):
        super().__init__(NativeConfig(ranges={}, ood_ranges={}, horizon=HORIZON))
        self.spec = Spec(obs_shape=(1,), actions=Discrete(2), horizon=HORIZON)

    def initial_state(self, shape, like, rng):
        return torch.zeros(*shape, 1)

    def dynamics(self, state, action, task, rng):
        after = state + 1
        return after, task["gain"] * action, after[..., 0] >= task["length"]


class Constant(Policy):
    """Takes one action in each task."""

    def __init__(self, action):
        self.action = action  # [M]

    def act(self, state, obs):
        return self.action[:, None].expand(obs.shape[:2]), state


class Reader(Reference):
    """Takes action 1 where its support of two rollouts, one for each action, says that it pays; or always 0, if ``blind``."""

    def __init__(self, family, blind=False):
        self.family, self.blind = family, blind

    def adapt(self, task, budget, rng, family=None):
        yield Adapted(0, 0, 0, Constant(torch.zeros(len(task["gain"]), dtype=torch.long)))
        for step in range(budget.steps):
            env = (family or self.family).make(task, 2, rng)
            rewards = env.step(torch.tensor([0, 1]).expand(len(task["gain"]), 2)).reward  # [M, 2]
            pays = torch.zeros(len(rewards)) if self.blind else rewards[:, 1] - rewards[:, 0]
            yield Adapted(step + 1, 1, 2, Constant((pays > 0).long()))

    def load_policy(self, state, task):
        raise NotImplementedError


class InMemory(Policy):
    """In the first episode takes action 1 in every other trial; then action 1 where it paid more than its neighbour."""

    def start(self, num_envs, rng, greedy=True):
        return {"rng": rng, "reward": None, "taken": None}

    def act(self, state, obs):
        if state["reward"] is None:
            return torch.arange(obs.shape[1]).remainder(2).expand(obs.shape[:2]), state
        reward, taken = state["reward"], state["taken"]
        return ((2 * taken - 1) * (reward - reward.roll(1, 1)) > 0).long(), state

    def observe(self, state, obs, action, step):
        return state if state["reward"] is not None else {**state, "reward": step.reward, "taken": action}


class Rememberer(Reader):
    """The same by memory, with two episodes."""

    def adapt(self, task, budget, rng, family=None):
        blind = Constant(torch.ones(len(task["gain"]), dtype=torch.long))
        yield Adapted(0, 0, 0, blind if self.blind else InMemory(), 2)


TASKS = {
    "gain": torch.tensor([1.0, 2.0, -1.0, -3.0]),
    "colour": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "length": torch.full((4,), 9.0),
}
BEST = [4.0, 8.0, 0.0, 0.0]  # of four steps
WORST = [0.0, 0.0, -4.0, -12.0]
ROWS = [OWN, BEFORE, "another task's", "another gain, same sign", "another gain, other sign", "another colour"]
ROWS += ["its own, rewards 0", "its own, actions shuffled"]


def probed(algorithm=Reader, blind=False, levels=UNKNOWN, tasks=TASKS):
    family = Switch()
    return probe(Evaluator(family, tasks, 2, 0, "test"), algorithm(family, blind), Budget(2), levels)


@pytest.mark.parametrize("algorithm", [Reader, Rememberer])
def test_one_that_reads_a_sign_uses_no_more(algorithm):
    found = {effect.support: effect for effect in probed(algorithm).effects}
    assert list(found) == ROWS
    returns = {name: effect.returns.tolist() for name, effect in found.items()}
    assert returns[OWN] == returns["another gain, same sign"] == returns["another colour"] == BEST
    assert returns["another gain, other sign"] == returns["its own, actions shuffled"] == WORST
    assert returns["another task's"] == [4.0, 0.0, 0.0, -12.0], "the next one's sign"
    assert returns["its own, rewards 0"] == [0.0] * 4, "nothing seems to pay"
    assert found["another colour"].difference == (0, 0, 0)
    assert found["another gain, other sign"].difference.value == pytest.approx(-28 / 4)
    assert found["another gain, other sign"].worst_tenth == -12


@pytest.mark.parametrize("algorithm", [Reader, Rememberer])
def test_one_that_ignores_its_support_has_no_differences(algorithm):
    effects = probed(algorithm, blind=True).effects
    alike = algorithm is Rememberer  # its trials, which all take action 1, so that no shuffling changes them
    assert [effect.support for effect in effects] == (ROWS[:-1] if alike else ROWS)
    for effect in effects:
        assert effect.difference == (0, 0, 0)
        assert effect.mean == effects[0].mean


@pytest.mark.parametrize("algo", slow_if(["maml_dqn", "evo_dqn", "rl2", "thompson"], {"evo_dqn", "rl2"}.__contains__))
def test_the_own_support_is_that_of_an_ordinary_test(algo):
    small = TINY_REFERENCE if algo == "thompson" else tiny(algo)
    parts = build(compose_train(f"algo={algo}", "env=bandit" if algo == "thompson" else "env=navigation_2d", *small))
    evaluator = Evaluator(parts.family, parts.family.sample_tasks(4, "test", numpy_rng(0, "tasks")), 2, 0, "test")
    budget = Budget(2) if algo in ("maml_dqn", "evo_dqn") else Budget(0, 3)
    found = probe(evaluator, parts.algorithm, budget, UNKNOWN)
    curve = evaluator.curve(parts.algorithm, budget)
    own, before = (next(e for e in found.effects if e.support == name) for name in (OWN, BEFORE))
    assert before.returns == pytest.approx(curve.returns[0].mean(0)) or algo == "thompson", "which draws anew in each episode"
    if curve.total is None:
        assert own.returns == pytest.approx(curve.returns[-1].mean(0))
    names = [effect.support for effect in found.effects]
    assert ("another goal_x, same sign" in names) == (algo != "thompson"), "one tensor is the task: it is not swapped alone"
    assert all(np.isfinite(effect.returns).all() for effect in found.effects)


def test_trials_go_on_where_each_has_had_its_episodes():
    class Counting(Constant):
        """Counts steps in both layouts that a policy's state may have."""

        def start(self, num_envs, rng, greedy=True):
            return {"mine": {"grid": torch.zeros(2, num_envs), "rows": torch.zeros(2 * num_envs, 5)}, "rng": None}

        def observe(self, state, obs, action, step):
            mine = state["mine"]
            return {**state, "mine": {"grid": mine["grid"] + 1, "rows": mine["rows"] + 1}}

    family, policy = Switch(), Counting(torch.zeros(2, dtype=torch.long))
    task = {"gain": torch.ones(2), "colour": torch.ones(2), "length": torch.tensor([1.0, 3.0])}
    env = family.make(task, 3, torch_rng(0, "env"))
    state = live_through(env, policy, policy.start(3, None), 2, 2 * HORIZON)["mine"]
    assert state["grid"].tolist() == [[2.0] * 3, [6.0] * 3], "two episodes, of one step and of three"
    assert state["rows"][:, 0].tolist() == [2.0] * 3 + [6.0] * 3
    going_on = next(rollout(env, policy, {"mine": state, "rng": None}))
    assert going_on.state["mine"]["grid"].tolist() == [[3.0] * 3, [7.0] * 3]
    shared = choose(torch.zeros(2, 3, dtype=torch.bool), {"a": torch.ones(4), "b": "new"}, {"a": torch.zeros(4), "b": "old"})
    assert shared["b"] == "new"
    assert shared["a"].tolist() == [1.0] * 4, "of another shape: it belongs to all"


@pytest.mark.parametrize("name", [name for name in ENVS if inherited("env", name)["module"] != "gymnasium"])
def test_a_support_differs_in_what_it_is_named_for(name):
    family = short(name)
    task = family.sample_tasks(8, "test", numpy_rng(0, "tasks"))
    groups = family.groups(task) or {"": torch.arange(8)}
    for support in supports(family, task):
        differ = {key: ~torch.eq(value, _columns(task)[key]).all(1) for key, value in _columns(support.task).items()}
        changed = {key: rows.nonzero()[:, 0].tolist() for key, rows in differ.items() if rows.any()}
        if support.name.startswith("another ") and support.name != "another task's":
            (key,) = changed
            assert support.name.removeprefix("another ").split(",")[0] == key
            assert changed[key] == support.rows.tolist()
            (group,) = (group for group in groups if key.startswith(group))
            assert set(changed[key]) <= set(groups[group].tolist()), "within a family of a mix"
        elif support.name == "another task's":
            assert set.union(*map(set, changed.values())) == set(support.rows.tolist())
            assert "family" not in changed
        else:
            assert not changed


def _columns(task):
    return {key: value.reshape(len(value), -1) for key, value in task.items()}


def test_a_changed_family_is_the_family_but_for_its_environments():
    family = short("classic_mix")
    task, changed = family.sample_tasks(4, "test", numpy_rng(0, "tasks")), ChangedFamily(family, WithoutRewards)
    assert torch.equal(changed.horizons(task), family.horizons(task))
    assert torch.equal(changed.knowledge(task), family.knowledge(task))
    assert changed.groups(task).keys() == family.groups(task).keys()
    assert changed.spec == family.spec
    step = changed.make(task, 2, torch_rng(0, "env")).step(torch.zeros(4, 2, dtype=torch.long))
    same = family.make(task, 2, torch_rng(0, "env")).step(torch.zeros(4, 2, dtype=torch.long))
    assert not step.reward.any()
    assert same.reward.any()
    assert torch.equal(step.next_obs, same.next_obs)


def test_tables_of_a_process_are_swapped_one_at_a_time():
    parts = build(compose_train("algo=psrl", "env=tabular_mdp", *TINY_REFERENCE))
    task = parts.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    found = probe(Evaluator(parts.family, task, 2, 0, "test"), parts.algorithm, Budget(0, 2), UNKNOWN)
    names = [effect.support for effect in found.effects]
    assert names[2:5] == ["another task's", "another transition", "another reward"]


def test_a_difference_is_a_share_of_the_range_and_fits_80_columns():
    robust, oracle = np.array(WORST), np.array(BEST)
    found = probed(levels=Levels(Level(robust, "run A"), Level(oracle, "run B")))
    shares = {effect.support: effect.share for effect in found.effects}
    assert shares["another gain, other sign"].value == pytest.approx(-1)
    assert shares["another colour"] == (0, 0, 0)
    console = wide_console()
    console.width = 80
    with console.capture() as captured:
        console.print(table(found, "title"))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("-100% [-100%, -100%]" in line for line in lines)
    assert "robust: the policy of a run that cannot know the task: run A" in " ".join(captured.get().split())
    assert "range from the robust policy to the oracle is 7.00" in " ".join(captured.get().split())
    assert probed(levels=Levels(Level(oracle, "A"), Level(robust, "B"))).effects[1].share is None, "no range"


class Still(Reader):
    """Adapts by nothing."""

    def adapt(self, task, budget, rng, family=None):
        yield Adapted(0, 0, 0, Constant(torch.zeros(4, dtype=torch.long)))


class Single(Reader):
    """Has trials of one episode."""

    def adapt(self, task, budget, rng, family=None):
        yield Adapted(0, 0, 0, Constant(torch.zeros(4, dtype=torch.long)), 1)


@pytest.mark.parametrize(("algorithm", "said"), [(Still, "does not adapt"), (Single, "give trial=2 or more")])
def test_what_has_no_support_is_refused(algorithm, said):
    with pytest.raises(UserError, match=said):
        probed(algorithm)

"""The package from Python: train, load, adapt to a task or to an environment of one's own, act, save, load again."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import algorithms, fitting, flat, module, tiny, variants_slow

import metarl_cli as metarl
from metarl_cli.envs.live import LiveFamily
from metarl_cli.errors import UserError
from metarl_cli.evaluation.report import as_json
from metarl_cli.evaluation.statistics import Interval
from metarl_cli.experience.rollout import RandomPolicy, collect
from metarl_cli.interfaces import Budget
from metarl_cli.runs.policy import AdaptedPolicy
from metarl_cli.runs.run import Run
from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import Continuous

BOTH = ("maml_dqn", "rl2")  # by gradient, by memory
both = pytest.mark.parametrize("algo", BOTH)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    small = {algo: [f"algo={algo}", "env=cartpole_family", *tiny(algo), "env.horizon=20"] for algo in BOTH}
    return {algo: metarl.train(*small[algo], f"run={folder / algo}") for algo in BOTH}


class Counted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole with a cart of another mass; counts what is asked of it."""

    def __init__(self, masscart: float = 1.0, reversed_push: bool = False):
        super().__init__(gymnasium.make("CartPole-v1"))
        inner: Any = self.unwrapped
        inner.masscart, inner.total_mass = masscart, masscart + inner.masspole
        self.reversed_push, self.episodes, self.running = reversed_push, [], False

    def reset(self, **options: Any) -> Any:
        self.episodes.append(0)
        self.running = True
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        assert self.running, "one episode after another, each begun by a reset"
        self.episodes[-1] += 1
        seen, reward, terminated, truncated, info = super().step(1 - action if self.reversed_push else action)
        self.running = not (terminated or truncated)
        return seen, reward, terminated, truncated, info


def acted(policy: AdaptedPolicy, steps: int = 30) -> list[int]:
    """What a policy does in an environment of its own, over several episodes."""
    env = gymnasium.make("CartPole-v1")
    seen, _ = env.reset(seed=5)
    reward, ended, actions = 0.0, False, []
    for _ in range(steps):
        actions.append(policy(seen, reward=reward, ended=ended))
        seen, reward, terminated, truncated, _ = env.step(actions[-1])
        if ended := terminated or truncated:
            seen, _ = env.reset()
    return actions


def test_training_reports_every_iteration_and_a_finished_run_is_returned_as_it_is(tmp_path):
    overrides, seen = ["algo=maml_dqn", *tiny("maml_dqn"), f"run={tmp_path / 'run'}"], []
    run = metarl.train(*overrides, progress=seen.append)
    assert [(one.iteration, one.iterations) for one in seen] == [(k, 4) for k in range(1, 5)]
    assert seen[-1].env_steps == run.env_steps or seen[-1].env_steps > run.env_steps > 0, "the best, or the last"
    assert "loss/query" in seen[0].metrics
    assert "eval/return_after" in seen[-1].metrics
    assert run.score is not None
    assert run.path == tmp_path / "run"
    assert repr(run) == f"Run({str(tmp_path / 'run')!r})"
    again = metarl.train(*overrides, progress=seen.append)
    assert len(seen) == 4
    assert again.score == run.score
    assert all(torch.equal(a, b) for a, b in zip(flat(again.algorithm.weights()), flat(run.algorithm.weights()), strict=True))


def test_what_cannot_run_is_one_error_with_every_problem():
    with pytest.raises(UserError) as caught:
        metarl.train("algo=maml_dqn", "algo.outer.lr=-1", "seed=-1")
    assert all(key in str(caught.value) for key in ("algo.outer.lr", "seed"))


@both
def test_a_run_is_tested_as_at_the_end_of_training(runs, algo):
    run = runs[algo]
    found = metarl.load(run.path).test()
    assert found["split"] == "test"
    assert np.array(found["adapted"]["task_returns"]).shape[1] == run.config.test.tasks
    if algo == "rl2":
        assert run.score == pytest.approx(found["trial"]["mean"] / found["trial"]["episodes"])
    else:
        assert run.score == pytest.approx(found["adapted"]["beside"][-1]["mean"])


# -- to a task


@both
def test_adapting_to_a_task_is_the_algorithms_own(runs, algo):
    run = runs[algo]
    policy = run.adapt(masscart=1.5, length=0.7, seed=3)
    assert policy.task["masscart"] == pytest.approx(1.5)
    task = run.family.named_task({"masscart": 1.5, "length": 0.7})
    budget = Budget(run.config.test.steps) if algo == "maml_dqn" else Budget()
    *_, last = run.algorithm.adapt(task, budget, torch_rng(3, "adapt", "support"))
    assert all(torch.equal(a, b) for a, b in zip(flat(policy.policy.state_dict()), flat(last.policy.state_dict()), strict=True))
    assert set(acted(policy)) <= {0, 1}
    named = run.adapt(task={"masscart": 1.5, "length": 0.7}, seed=3)
    assert acted(named) == acted(run.adapt(masscart=1.5, length=0.7, seed=3)), "by either way to name it"


def test_gradient_steps_and_episodes_of_a_trial_are_the_callers(runs):
    start, moved = (runs["maml_dqn"].adapt(steps=steps) for steps in (0, 3))
    assert not torch.equal(*(policy.policy.state_dict()["params"]["head.weight"] for policy in (start, moved)))
    short, long = (runs["rl2"].adapt(trial=trial) for trial in (1, 3))
    assert [int(policy.state["before"]["episode"]) for policy in (short, long)] == [1, 3]


@pytest.mark.parametrize(
    ("algo", "asked", "said"),
    [
        ("maml_dqn", {"trial": 3}, "trial=3: .* adapts by gradient steps; give steps=NUMBER"),
        ("rl2", {"steps": 3}, "steps=3: .* adapts within trials?.* give trial=EPISODES"),
        ("maml_dqn", {"gravty": 9.0}, "no such task parameter: gravty"),
        ("rl2", {"masscart": -1.0}, "masscart must be above 0"),
    ],
)
def test_what_cannot_be_adapted_to_is_refused(runs, algo, asked, said):
    with pytest.raises(UserError, match=said):
        runs[algo].adapt(**asked)


# -- to an environment of one's own


@both
@pytest.mark.parametrize("changes", [{"masscart": 2.0}, {"reversed_push": True}])
def test_adapting_to_an_environment_of_ones_own(runs, algo, changes):
    """Episodes one after another, as many as were asked for; the same seed, the same policy."""
    first, second = (Counted(**changes) for _ in range(2))
    policies = [runs[algo].adapt_on(env, episodes=5, seed=1) for env in (first, second)]
    assert first.episodes == second.episodes
    whole = [length for length in first.episodes if length]
    assert len(whole) == 5
    assert all(1 <= length <= 20 for length in whole), "the horizon of the family ends an episode too"
    assert acted(policies[0]) == acted(policies[1])
    before = [x.clone() for x in flat(runs[algo].algorithm.weights())]
    assert all(torch.equal(a, b) for a, b in zip(before, flat(runs[algo].algorithm.weights()), strict=True))


def test_what_the_environment_shows_is_what_is_learned_from(runs):
    """Pushed the other way, the support and so the weights are others; without a step they are not."""
    run, push = runs["maml_dqn"], {False: [], True: []}
    for reversed_push, found in push.items():
        for steps in (0, 2):
            policy = run.adapt_on(Counted(reversed_push=reversed_push), episodes=4, steps=steps)
            found.append(policy.policy.state_dict()["params"]["head.weight"])
    assert torch.equal(push[False][0], push[True][0])
    assert not torch.equal(push[False][1], push[True][1])


def test_a_live_environment_is_one_that_runs_one_episode_after_another(runs):
    spec, env = runs["rl2"].family.spec, Counted()
    family = LiveFamily(env, spec, torch.device("cpu"))
    live = family.make(family.task, 1, torch_rng(0, "env"))
    policy = RandomPolicy(spec.actions)
    found = collect(live, policy, policy.start(1, torch_rng(0, "act")), 60)
    assert found.obs.shape == (1, 60, 1, 4)
    ends = (torch.nonzero(found.ended[0, :, 0])[:, 0] + 1).tolist()
    assert env.episodes[:-1] == [b - a for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    inside = ~found.ended[0, :-1, 0]
    assert torch.equal(found.obs[0, 1:, 0][inside], found.next_obs[0, :-1, 0][inside])
    assert not torch.equal(found.obs[0, ends[0], 0], found.next_obs[0, ends[0] - 1, 0]), "the true successor at an end"
    with pytest.raises(UserError, match="there is one"):
        family.make(family.task, 2, torch_rng(0, "env"))


@pytest.mark.parametrize(
    ("name", "said"),
    [("Pendulum-v1", r"made for observations \[4\]"), ("MountainCar-v0", r"made for observations \[4\]")],
)
def test_other_observations_are_refused(runs, name, said):
    with pytest.raises(UserError, match=said):
        runs["maml_dqn"].adapt_on(gymnasium.make(name))


@pytest.mark.parametrize("space", [gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1, 1, (1,))])
def test_other_actions_are_refused(runs, space):
    env = Counted()
    env.action_space = space
    with pytest.raises(UserError, match="made for actions"):
        runs["rl2"].adapt_on(env)


def test_actions_that_begin_elsewhere_are_counted_from_there(runs):
    class FromFive(gymnasium.ActionWrapper[Any, Any, Any]):
        def __init__(self):
            super().__init__(gymnasium.make("CartPole-v1"))
            self.action_space = gymnasium.spaces.Discrete(2, start=5)

        def action(self, action):
            assert action in (5, 6)
            return action - 5

    plain = runs["maml_dqn"].adapt_on(gymnasium.make("CartPole-v1"), episodes=2)
    shifted = runs["maml_dqn"].adapt_on(FromFive(), episodes=2)
    obs = np.random.default_rng(0).normal(size=(20, 4))
    assert [shifted(x) for x in obs] == [plain(x) + 5 for x in obs]


# -- the policy


def test_a_memory_sees_what_came_of_its_action_and_forgets_on_reset(runs):
    policy = runs["rl2"].adapt(trial=1)
    obs = np.array([0.01, 0.02, 0.03, 0.04])
    start = flat({k: v for k, v in policy.state.items() if k != "rng"})
    policy(obs)
    policy(obs, reward=7.0, ended=True)
    assert float(policy.state["before"]["reward"]) == 7
    assert float(policy.state["before"]["ended"]) == 1
    assert float(policy.state["before"]["episode"]) == 2, "of the trial, and the one that it has ended since"
    policy.reset()
    assert policy.last is None
    after = flat({k: v for k, v in policy.state.items() if k != "rng"})
    assert all(torch.equal(a, b) for a, b in zip(start, after, strict=True))
    once = acted(policy)
    policy.reset()
    assert acted(policy) == once


@both
@pytest.mark.parametrize("live", [False, True])
def test_a_saved_policy_acts_the_same_when_loaded(runs, algo, live, tmp_path):
    run = runs[algo]
    policy = run.adapt_on(Counted(masscart=1.3), episodes=2) if live else run.adapt(masscart=1.3)
    expected = acted(policy)
    policy.save(tmp_path / "policy.pt")
    for path in (tmp_path / "policy.pt", tmp_path, str(tmp_path)):
        loaded = metarl.load(path)
        assert isinstance(loaded, AdaptedPolicy)
        assert loaded.task == pytest.approx(policy.task)
        assert acted(loaded) == expected
    loaded.save(tmp_path / "again.pt")
    assert acted(metarl.load(tmp_path / "again.pt")) == expected


CHANCE = {"thompson", "optimistic_thompson", "linear_thompson", "psrl", "opsrl"}  # strategies that sample from a posterior


STRATEGIES = {"bandit_strategies": "bandit", "mdp_strategies": "tabular_mdp", "linear_strategies": "recommendation"}


@pytest.mark.parametrize("algo", variants_slow(algorithms() + algorithms(learns=False)))
def test_every_algorithm_loads_the_policies_that_it_saves(algo, tmp_path):
    kind = module(algo).__name__.rpartition(".")[2]
    env = STRATEGIES.get(kind) or fitting(algo)
    reference = [
        "hardware=cpu",
        "test.tasks=2",
        "test.episodes=2",
        *(["algo.episodes=3"] if kind.endswith("strategies") else []),
    ]
    small = tiny(algo) if algo in algorithms() else reference
    run = metarl.train(f"algo={algo}", f"env={env}", *small, f"run={tmp_path / 'run'}")
    policy = run.adapt()
    policy.save(tmp_path / "policy.pt")
    first, second = metarl.load(tmp_path / "policy.pt"), metarl.load(tmp_path / "policy.pt")
    obs = np.zeros(run.family.spec.obs_shape)
    obs[0] = 1.0  # as a table of states has it; the number of a state, or a place

    def choices(chosen: AdaptedPolicy) -> list[Any]:
        ends = run.family.spec.horizon
        acts = [chosen(obs, reward=float(i % 2), ended=i % ends == 0) for i in range(40)]  # bandits: beyond a trial
        return np.asarray(acts).tolist()

    acts = choices(first)
    assert acts == choices(second), "the chance of a loaded policy is the same each time"
    actions = run.family.spec.actions
    vectors = isinstance(actions, Continuous)
    assert all(np.abs(action).max() <= max(actions.high) if vectors else 0 <= action < actions.size for action in acts)
    if algo not in CHANCE and "epsilon" not in algo:
        assert acts == choices(policy)


@pytest.mark.parametrize("damage", ["nothing", "text", "cut", "another checkpoint", "long name"])
def test_what_is_no_run_and_no_policy_is_refused(runs, damage, tmp_path):
    path = tmp_path / ("x" * 300 if damage == "long name" else "policy.pt")
    if damage == "text":
        path.write_text("nothing of the kind")
    if damage == "cut":
        runs["rl2"].adapt().save(path)
        path.write_bytes(path.read_bytes()[:500])
    if damage == "another checkpoint":
        path.write_bytes((runs["rl2"].path / "last.pt").read_bytes())
    with pytest.raises(UserError):
        metarl.load(path)


def test_a_run_is_loaded_from_its_folder(runs):
    run = metarl.load(runs["rl2"].path)
    assert isinstance(run, Run)
    assert acted(run.adapt(seed=2)) == acted(runs["rl2"].adapt(seed=2))
    assert (run.score, run.env_steps) == (runs["rl2"].score, runs["rl2"].env_steps)


def test_a_live_episode_ends_where_it_ends(runs):
    """However long the support may be, an environment of one's own is stepped for its episodes alone."""
    env, run = Counted(), runs["maml_dqn"]
    live = LiveFamily(env, run.family.spec, run.device)
    state = RandomPolicy(run.family.spec.actions).start(1, torch_rng(0, "policy"))
    policy = RandomPolicy(run.family.spec.actions)
    batch = collect(live.make(live.task, 1, torch_rng(0, "env")), policy, state, 500, one_episode=True, stop=True)
    assert env.episodes[0] == int(batch.weight.sum()) < 500
    assert env.episodes[1:] == [0], "the next one is reset, and not stepped"
    assert batch.reward.shape == (1, 500, 1)


def test_evolution_adapts_on_the_episodes_it_is_given(tmp_path):
    run = metarl.train("algo=es_dqn", *tiny("es_dqn"), f"run={tmp_path / 'run'}")
    env = Counted()
    run.adapt_on(env, episodes=3, steps=1)
    assert sum(length > 0 for length in env.episodes) == 3
    run = metarl.train("algo=evo_hyper", *tiny("evo_hyper"), f"run={tmp_path / 'hyper'}")
    with pytest.raises(UserError, match="environments at a time"):
        run.adapt_on(Counted(), steps=1)


@both
@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda run: run.adapt_on(Counted(), episodes=0), "episodes=0"),
        (lambda run: run.adapt_on(Counted(), episodes=-2), "episodes=-2"),
        (lambda run: run.adapt_on(Counted(), episodes=1.5), "episodes=1.5"),
        (lambda run: run.test(tasks=0), "tasks=0"),
        (lambda run: run.adapt(seed=-1), "seed=-1"),
        (lambda run: run.adapt(gravity=float("nan")), "gravity must be a finite number"),
        (lambda run: run.adapt(gravity=1e300), "gravity must be a finite number, at most 1e"),
        (lambda run: run.adapt(gravity="heavy"), "heavy"),
    ],
)
def test_a_wrong_number_is_one_clear_error(runs, algo, call, problem):
    with pytest.raises(UserError, match=problem):
        call(runs[algo])


@both
def test_numbers_of_numpy_are_numbers(runs, algo, tmp_path):
    """An environment may return them, and a user may count with them; what is saved is plain."""
    policy = runs[algo].adapt_on(Counted(), episodes=np.int64(2))
    policy([0.0, 0.0, 0.0, 0.0])
    assert policy([0.0, 0.0, 0.0, 0.0], reward=np.float32(1), ended=np.bool_(True)) in (0, 1)
    policy.save(tmp_path / "policy.pt")
    assert isinstance(metarl.load(tmp_path / "policy.pt"), AdaptedPolicy)


@both
def test_a_policy_file_of_another_network_is_refused(runs, algo, tmp_path):
    from metarl_cli.runs import checkpoint

    runs[algo].adapt().save(tmp_path / "policy.pt")
    content = checkpoint.load(tmp_path / "policy.pt")
    content["policy"]["params"] = {name: value[..., :1] for name, value in content["policy"]["params"].items()}
    checkpoint.save(tmp_path / "policy.pt", content)
    with pytest.raises(UserError, match="no adapted policy"):
        metarl.load(tmp_path / "policy.pt")


def test_a_run_that_failed_can_go_on_in_the_same_process(tmp_path):
    overrides = ["algo=maml_dqn", *tiny("maml_dqn"), f"run={tmp_path / 'run'}"]

    def fail(progress: object) -> None:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own") as kept:
        metarl.train(*overrides, progress=fail)
    assert metarl.train(*overrides).score is not None
    assert kept.value is not None, "the exception was alive meanwhile, with the frames that held the folder"


def test_a_task_that_was_not_learned_starts_from_fresh_weights(tmp_path):
    """Of one task the held-out ones equal the training ones, number by number; they are adapted to all the same."""
    run = metarl.train("algo=dqn", "env=cartpole_v1", *tiny("dqn"), f"run={tmp_path / 'run'}")
    algorithm, task = run.algorithm, run.family.sample_tasks(3, "test", np.random.default_rng(0))
    own, new = (next(algorithm.adapt(t, Budget(), torch_rng(0, "t"))).policy for t in (algorithm.task, task))
    weights = algorithm.weights()["params"]
    assert all(torch.equal(own.state_dict()["params"][name], weights[name]) for name in weights)
    assert not any(torch.equal(new.state_dict()["params"][name], weights[name]) for name in weights if "weight" in name)


@both
def test_a_run_computes_with_its_own_number_of_threads(runs, algo, monkeypatch):
    run, counts = runs[algo], []
    adapt = run.algorithm.adapt

    def counted(*args: Any, **more: Any) -> Any:
        counts.append(torch.get_num_threads())
        return adapt(*args, **more)

    monkeypatch.setattr(run.algorithm, "adapt", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        run.adapt()
        run.adapt_on(Counted(), episodes=2)
        run.test(tasks=2, episodes=2)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert len(counts) >= 3
    assert set(counts) == {run.config.hardware.threads}


def test_a_policy_whose_memory_is_full_says_so(tmp_path):
    """The trial that it has lived through filled the context of its transformer."""
    memory = ["algo.memory.cell=transformer", "algo.memory.size=8", "algo.memory.heads=2", "algo.memory.context=40"]
    small = [o for o in tiny("rl2") if not o.startswith(("env.horizon", "algo.memory"))]
    run = metarl.train("algo=rl2", "env=bandit", *small, *memory, "algo.episodes=40", f"run={tmp_path / 'run'}")
    policy = run.adapt()
    with pytest.raises(UserError, match="context of 40 steps is full: adapt over fewer episodes"):
        policy(np.ones(run.family.spec.obs_shape))
    assert run.adapt(trial=39)(np.ones(run.family.spec.obs_shape)) in range(run.family.spec.actions.size)


@pytest.mark.parametrize(
    "change", [lambda history: {}, lambda history: {"history": history[..., :-1]}], ids=["missing", "narrow"]
)
def test_a_saved_policy_without_its_state_is_refused(change, tmp_path):
    small = ["algo=stacked_dqn", "env=cartpole_family", *tiny("stacked_dqn"), "env.horizon=20", f"run={tmp_path / 'run'}"]
    policy = metarl.train(*small).adapt(masscart=1.5)
    policy.save(tmp_path / "policy.pt")
    assert acted(metarl.load(tmp_path / "policy.pt")) == acted(policy)
    history = policy.adapted.pop("history")
    policy.adapted |= change(history)
    policy.save(tmp_path / "policy.pt")
    with pytest.raises(UserError, match="it is no adapted policy"):
        metarl.load(tmp_path / "policy.pt")


def test_a_result_is_json_of_finite_numbers(runs, monkeypatch):
    """A bound that there is none of is null, and not NaN, which JSON does not have."""
    unknown = Interval(0.5, math.nan, math.inf)
    monkeypatch.setattr(
        "metarl_cli.runs.results.as_json", lambda *parts: as_json(*parts) | {"normalised_score": [unknown._asdict()]}
    )
    run = metarl.load(runs["maml_dqn"].path)
    run.measure("test", 2, None, None, None)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    texts = {path.stem: path.read_text() for path in run.path.glob("results/*.json")}
    found = {name: json.loads(text, parse_constant=refuse) for name, text in texts.items()}
    assert [{"value": 0.5, "low": None, "high": None}] in [result["normalised_score"] for result in found.values()]
    assert found == run.results

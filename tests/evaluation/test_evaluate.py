"""Trials of known policies: greedy beside sampled, chosen by the whole trial, and what ``metarl adapt`` keeps of one."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY_REFERENCE, compose_train, compose_values, load, tiny

from metarl_cli.algos.reference import Reference
from metarl_cli.cli import adapt, train
from metarl_cli.config.models import AdaptConfig, Job
from metarl_cli.config.registry import validate
from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.evaluation.curves import metrics, reference_metrics
from metarl_cli.evaluation.evaluator import Evaluator, standard_error
from metarl_cli.evaluation.report import as_json, table
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Adapted, Budget, Policy
from metarl_cli.progress import wide_console
from metarl_cli.runs import checkpoint, loop
from metarl_cli.runs import run as saved_runs
from metarl_cli.runs.build import Components, build
from metarl_cli.runs.files import read_json
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.policy import plain
from metarl_cli.runs.results import AdaptedResult
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete, Spec

CPU = torch.device("cpu")


class Fixed(Reference):
    """Pulls each arm with a fixed probability, whatever it sees; the memory counts the steps."""

    stochastic = True

    def __init__(self, family, episodes, probabilities=(1.0,)):
        self.probabilities, self.episodes = torch.tensor(probabilities), episodes
        self.task = family.sample_tasks(1, "train", numpy_rng(0, "tasks"))

    def adapt(self, task, budget, rng, family=None):
        yield Adapted(0, 0, 0, FixedPolicy(self, task), self.episodes)

    def load_policy(self, state, task):
        return FixedPolicy(self, task)

    def choose(self, task, memory, obs):
        shape = obs.shape[:2]
        if memory["greedy"]:
            return self.probabilities.argmax().expand(shape)
        action = torch.multinomial(self.probabilities, shape.numel(), replacement=True, generator=memory["rng"])
        return action.view(shape)


class FixedPolicy(Policy):
    """What a :class:`Fixed` does on tasks."""

    def __init__(self, algorithm, task):
        self.algorithm, self.task, self.stochastic = algorithm, task, algorithm.stochastic

    def start(self, num_envs, rng, greedy=True):
        steps = torch.zeros(len(next(iter(self.task.values()))), num_envs)
        return {"rng": rng, "greedy": greedy, "counts": {"steps": steps}}

    def act(self, memory, obs):
        return self.algorithm.choose(self.task, memory, obs), memory

    def observe(self, memory, obs, action, step):
        return {**memory, "counts": {"steps": memory["counts"]["steps"] + 1}}


class Improving(Fixed):
    """Told the task, pulls its best or its worst arm: which, in each episode of a trial, changes as it is trained."""

    learns = True
    BEST_ARM = ((0, 0, 0), (0, 0, 1), (1, 1, 0), (0, 0, 0))  # [iteration][episode]

    iteration = 0

    def train_step(self):
        self.iteration += 1
        self.env_steps += 10
        return {}

    def choose(self, task, memory, obs):
        now = self.BEST_ARM[self.iteration][int(memory["counts"]["steps"][0, 0])]
        arm = task["mean"].argmax(-1) if now else task["mean"].argmin(-1)
        return arm[:, None].expand(obs.shape[:2])

    def weights(self):
        return {"iteration": torch.tensor(self.iteration)}

    def load_weights(self, state):
        self.iteration = int(state["iteration"])

    def state_dict(self):
        return {"weights": self.weights()}


class Walker(Fixed):
    """In a grid: three steps to the right, then stays; sampled, it never moves."""

    learns = True

    def choose(self, task, memory, obs):
        moves = memory["greedy"] & (memory["counts"]["steps"] % 15 < 3)
        return torch.where(moves, 2, 0)

    def weights(self):
        return {"way": torch.tensor([3.0])}


def bandit(*overrides, env="bandit_gaussian"):
    config = compose_train("algo=greedy", f"env={env}", *overrides)
    module, values = load("env", config.env)
    return module.Family(values, CPU)


MEANS = [1.0, 0.0, 2.0]
PROBABILITIES = [0.5, 0.3, 0.2]  # greedy: 1 a pull; sampled: 0.9 with variance 0.49


def report(tasks=200, episodes=5, pulls=10, probabilities=PROBABILITIES, noise=0.0):
    family = bandit("env.arms=3", f"env.noise={noise}")
    task = {"mean": torch.tensor(MEANS).expand(tasks, -1)}
    return Evaluator(family, task, episodes, 0, "test").report(Fixed(family, pulls, probabilities), Budget()), task


def text(shown):
    console = wide_console()
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_greedy_beside_sampled():
    found, task = report()
    assert found.total.mean == pytest.approx(10)
    assert found.total.each == pytest.approx([1.0] * 10)
    assert found.total.standard_error == pytest.approx(0, abs=1e-6)
    assert found.curve.score == pytest.approx(1.0)
    error = (10 * 0.49 / 1000) ** 0.5  # of 1000 trials of 10 pulls
    total = found.sampled.total
    assert total.mean == pytest.approx(9, abs=4 * error)
    assert total.standard_error == pytest.approx(error, rel=0.2)
    assert np.mean(total.each) == pytest.approx(total.mean / 10)
    assert found.regret == pytest.approx(1), "of an episode of the greedy trials"

    scalars = metrics(found.curve, "test") | reference_metrics(found, "test")
    assert scalars["test/trial_return"] == pytest.approx(10)
    assert scalars["test/return_after"] == pytest.approx(1)
    assert scalars["test/trial_return_sampled"] == total.mean
    assert scalars["test/return_sampled_after"] == found.sampled.points[-1].value

    shown = text(table(found, "trials"))
    for row in (
        "episode 10",
        "sum of 10 episodes",
        "sampled: episode 1 ",
        "sampled: episode 10",
        "sampled: sum of 10 episodes",
    ):
        assert row in shown
    assert "sampled: episode 2" not in shown
    saved = json.loads(json.dumps(as_json(found, task, {})))
    assert saved["trial_sampled"]["mean"] == total.mean
    assert np.array(saved["sampled"]["task_returns"]).shape == (10, 200)


def test_sampled_trials_meet_the_same_chance_as_greedy_ones():
    """A policy without doubt acts the same both ways: then every noisy reward is the same."""
    found, _ = report(tasks=3, probabilities=[0.0, 1.0, 0.0], noise=1.0)
    assert np.array_equal(found.curve.returns, found.sampled.returns)
    assert found.curve.returns.std() > 0.5


def test_a_policy_without_chance_has_no_sampled_curve():
    family = bandit("env.arms=3")
    algorithm = Fixed(family, 4, PROBABILITIES)
    algorithm.stochastic = False
    found = Evaluator(family, family.sample_tasks(3, "test", numpy_rng(0, "tasks")), 2, 0, "test").report(algorithm, Budget())
    assert found.sampled is None
    assert not any("sampled" in tag for tag in reference_metrics(found, "test"))
    assert "sampled" not in text(table(found, "trials"))


def test_of_a_single_task_the_interval_is_over_its_trials():
    found, _ = report(tasks=1, episodes=400)
    low, high = (10 * 0.9 + sign * 1.96 * (10 * 0.49 / 400) ** 0.5 for sign in (-1, 1))
    total, last = found.sampled.total, found.sampled.points[-1]
    assert low < total.mean < high
    assert total.standard_error == pytest.approx((10 * 0.49 / 400) ** 0.5, rel=0.1)
    assert last.high - last.low == pytest.approx(2 * 1.96 * (0.49 / 400) ** 0.5, rel=0.2)


def test_a_long_trial_is_kept_at_few_points():
    found, task = report(tasks=500, episodes=1, pulls=500)
    assert len(found.curve.steps) <= 20
    assert (found.curve.steps[0], found.curve.steps[-1]) == (0, 499)
    assert found.curve.returns.shape == (len(found.curve.steps), 1, 500)
    assert found.curve.env_steps == found.curve.steps
    assert len(found.sampled.total.each) == 500
    assert found.total.mean == pytest.approx(500)
    assert len(json.dumps(as_json(found, {"mean": task["mean"][:0]}, {}))) < 600_000


def run_here(folder, monkeypatch, algorithm, *overrides):
    """``metarl train`` with ``algorithm`` in the place of the configuration's."""
    config = compose_train(f"run={folder}", *TINY_REFERENCE, *overrides)
    module, values = load("env", config.env)
    family = module.Family(values, CPU)
    parts = Components(family, algorithm(family), CPU)
    for where in (loop, saved_runs):
        monkeypatch.setattr(where, "build", lambda *_: parts)
    return train.run(config, Job({"algo": "a", "env": "e"}, []))


def test_models_are_selected_by_the_whole_trial(tmp_path, monkeypatch, capsys):
    """After iteration 1 the last episode is the best there is, after iteration 2 the trial."""
    score = run_here(
        tmp_path / "run",
        monkeypatch,
        lambda family: Improving(family, 3),
        *("algo=rl2", "env=bandit_gaussian", "env.noise=0.0", "train.iterations=3", "train.eval_every=1"),
    )
    folder = RunFolder(tmp_path / "run")
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    last, whole = ([row[tag] for row in rows if tag in row] for tag in ("eval/return_after", "eval/trial_return"))
    assert np.argmax(last) == 0
    assert np.argmax(whole) == 1
    best = checkpoint.load(folder.best)
    assert int(best["algorithm"]["weights"]["iteration"]) == 2
    assert best["score"] == pytest.approx(whole[1] / 3)
    result = json.loads((folder.results / "test.json").read_text())
    assert score == best["score"], "a sweeper sees the validation tasks alone"
    assert folder.manifest()["score"] == pytest.approx(result["trial"]["mean"] / 3)
    assert [row["eval/score"] for row in rows if "eval/score" in row] == pytest.approx([x / 3 for x in whole])
    assert f"first {last[2]:.4g}  last {last[2]:.4g}  trial {whole[2]:.4g}" in capsys.readouterr().out


def test_adapt_keeps_one_trial_its_path_and_its_memory(tmp_path, monkeypatch, capsys, pictures):
    run_here(
        tmp_path / "run",
        monkeypatch,
        lambda family: Walker(family, 2),
        *("algo=oracle", "env=gridworld", "test.tasks=2"),
    )
    capsys.readouterr()
    values = [f"run={tmp_path / 'run'}", "+task.goal_x=3", "+task.goal_y=0", "trial=2", "gif=true", "hardware=cpu"]
    score = adapt.run(validate(AdaptConfig, compose_values("adapt", values)), Job({}, []))
    there = 13 - 0.2  # two steps to go, then on the goal from the third to the last
    assert score == pytest.approx(there)
    shown = capsys.readouterr().out
    path = " ".join(["(0,0)", "(1,0)", "(2,0)"] + 13 * ["(3,0)"])
    for k in (1, 2):
        assert f"episode {k}: {path}  return 12.80" in shown
    for row, value in (("sum of 2 episodes", "25.60"), ("sampled: sum of 2 episodes", "-3.00"), ("optimum", "12.80")):
        assert any(row in line and value in line for line in shown.splitlines()), row

    out = tmp_path / "run" / "adapted" / "goal_x=3-goal_y=0"
    policy = checkpoint.load(out / "policy.pt")
    assert torch.equal(policy["weights"]["way"], torch.tensor([3.0]))
    assert torch.equal(policy["state"]["counts"]["steps"], torch.tensor([[30.0]])), "after both episodes, of one trial"
    assert set(policy["state"]) == {"greedy", "counts"}, "without the generator"
    assert policy["task"] == {"goal_x": 3, "goal_y": 0}
    kept = read_json(out / "adaptation.json", AdaptedResult)
    assert kept["task"] == {"goal_x": 3, "goal_y": 0}
    assert [point["value"] for point in kept["returns"]] == pytest.approx([there, there])
    assert kept["played"]["places"] == [path.split(), path.split()]
    assert kept["played"]["returns"] == pytest.approx([there, there])
    assert [point["value"] for point in kept["sampled"]] == pytest.approx([-1.5, -1.5])
    assert (out / "adaptation.png").stat().st_size > 10_000
    assert (out / "trial.gif").read_bytes().startswith(b"GIF89a")


def test_what_is_saved_is_a_copy_of_tensors_alone():
    rng, whole = torch_rng(0, "r"), torch.arange(1000.0, requires_grad=True)
    memory = {"rng": rng, "view": whole[:2], "pair": (whole[:1], {"rng": rng, "n": 3}), "greedy": True}
    found = plain(memory)
    assert found == {"view": found["view"], "pair": [found["pair"][0], {"n": 3}], "greedy": True}
    assert found["view"].tolist() == [0, 1]
    assert found["view"].untyped_storage().nbytes() == 8
    assert not found["view"].requires_grad


class Countdown(NativeFamily):
    """Episodes of as many steps as the task says, with reward 1 each."""

    parameters = {"steps": 3.0}

    def __init__(self):
        super().__init__(NativeConfig(horizon=5, ranges={}, ood_ranges={}))
        self.spec = Spec(obs_shape=(1,), actions=Discrete(2), horizon=5)

    def initial_state(self, shape, like, rng):
        return torch.zeros(*shape, 1)

    def dynamics(self, state, action, task, rng):
        state = state + 1
        return state, torch.ones(action.shape), state[..., 0] >= task["steps"]


def test_nothing_counts_beyond_the_last_episode_of_a_trial():
    """Though slower trials of the batch still run."""
    family, steps = Countdown(), torch.tensor([1.0, 3.0, 9.0])  # the last is truncated at 5
    task = {"steps": steps}
    policy = FixedPolicy(Fixed(family, 4), task)
    returns, lengths = run_episodes(family, task, policy, 2, torch_rng(0, "env"), torch_rng(0, "trial"), 4)
    expected = steps.clamp(max=5)[:, None].expand(4, 3, 2)
    assert torch.equal(returns, expected)
    assert torch.equal(lengths, expected)
    curve = Evaluator(family, {"steps": steps}, 2, 0, "test").curve(Fixed(family, 4), Budget())
    assert curve.env_steps == [0, 3, 6, 9]
    assert curve.score == pytest.approx(3)


def test_the_standard_error_of_groups_is_that_of_their_average():
    one, other = np.array([[1.0, 3.0], [4.0, 4.0]]), np.array([[10.0], [20.0], [30.0]])  # task means 2, 4 and 10, 20, 30
    assert standard_error([one]) == pytest.approx(1)
    assert standard_error([one, other]) == pytest.approx((1 + 100 / 3) ** 0.5 / 2)
    assert standard_error([np.array([[1.0, 3.0]])]) == pytest.approx(1), "of a single task over its trials"
    assert standard_error([one, np.array([[1.0]])]) is None


def test_the_total_of_a_mix_is_the_average_of_its_families():
    short = [f"env.families.{name}.horizon=10" for name in ("cartpole_family", "mountain_car_family")]
    parts = build(compose_train("env=classic_mix", "algo=rl2", *[o for o in tiny("rl2") if not o.startswith("env.")], *short))
    tasks = parts.family.sample_tasks(3, "test", numpy_rng(0, "tasks", "test"))  # two of one family, one of the other
    curve = Evaluator(parts.family, tasks, 2, 0, "test").curve(parts.algorithm, Budget())
    assert curve.total is not None
    assert curve.total.mean == pytest.approx(sum(point.value for point in curve.points), rel=1e-5)
    assert curve.total.each == pytest.approx([point.value for point in curve.points], rel=1e-5)

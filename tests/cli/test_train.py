"""The commands end to end: train, go on after a kill, test, adapt, and what TensorBoard serves of it."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import (
    CONF,
    TINY_REFERENCE,
    algorithms,
    compose_train,
    compose_values,
    fitting,
    flat,
    module,
    slow_if,
    tiny,
    variant,
)
from launching import PATIENCE, metarl, start, wait_until

from metarl_cli.cli import adapt, train
from metarl_cli.cli import test as retest
from metarl_cli.config.models import AdaptConfig, Job
from metarl_cli.config.registry import validate
from metarl_cli.errors import UserError
from metarl_cli.evaluation.held_out import held_out_tasks, task_hash
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import build
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.run import load_policy
from metarl_cli.runs.tracking import Tracker
from metarl_cli.seeding import torch_rng

METARL = [sys.executable, "-m", "metarl_cli"]


def small(algo: str, env: str = "cartpole_family", **values) -> list[str]:
    return [f"algo={algo}", f"env={fitting(algo, env)}", *tiny(algo), *(f"{k}={v}" for k, v in values.items())]


def weights(folder: Path) -> list[torch.Tensor]:
    state = checkpoint.load(folder / "last.pt")["algorithm"]
    return flat(state)


def logged(folder: Path) -> list[dict]:
    """Every metric but the clock's."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def run_here(folder: Path, *overrides: str) -> float:
    """``metarl train`` in this process."""
    config = compose_train(f"run={folder}", *overrides)
    return train.run(config, Job({"algo": "a", "env": "e"}, []))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One finished run, made by the command as a user starts it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    command = [*METARL, "train", *small("maml_dqn"), f"run={folder}"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "after step 2" in done.stdout
    assert "tensorboard --logdir" in done.stdout
    return folder


# Gradient steps spent at each point of the curve; each of adrl's iterations has 2, but for the first, which has none
GRADIENT_STEPS = {"maml_dqn": [0, 1, 2], "evo_dqn": [0, 1, 2], "rl2": [0, 0], "adrl": [0, 2, 6]}


@pytest.mark.parametrize("algo", slow_if(algorithms(), lambda algo: algo == "adrl" or variant("algo", algo)))
def test_every_algorithm_trains_tests_and_says_so(algo, tmp_path, capsys):
    score = run_here(tmp_path / "run", *small(algo))
    assert np.isfinite(score)
    folder = RunFolder(tmp_path / "run")
    manifest = folder.manifest()
    assert manifest["status"] == "finished"
    validated = [row["eval/score"] for row in logged(folder.path) if "eval/score" in row]
    assert score == max(validated) == folder.validation_score(), "what a sweeper gets"
    assert run_here(tmp_path / "run", *small(algo)) == score, "of a finished run too"
    by = module(algo).Algo.adapts_by
    points = {"memory": 2, "nothing": 1}.get(by, 3)
    splits = [split for split in ("test", "ood") if split in manifest["tasks"]]
    for split in splits:
        result = json.loads((folder.results / f"{split}.json").read_text())
        assert np.array(result["adapted"]["task_returns"]).shape == (points, 4)
        updates = result["adapted"]["gradient_steps"]
        assert updates == GRADIENT_STEPS.get(algo, sorted(updates))
        if split == "test":
            means = np.array(result["adapted"]["task_returns"])
            learned = result["learned"] or {"value": means[-1].mean()}  # by an algorithm that learns each training task alone
            expected = result["trial"]["mean"] / 2 if by == "memory" else learned["value"]
            assert manifest["score"] == pytest.approx(float(expected))
            assert result["adapted"]["beside"][-1]["mean"] == pytest.approx(means[-1].mean())
        assert updates[0] == 0
        assert result["tasks"]["hash"] == manifest["tasks"][split]
        assert (folder.results / f"{split}.png").is_file()
    tags = {tag for row in logged(folder.path) for tag in row}
    shared = {"eval/return_before", "eval/return_after", "eval/gain", "eval/auc", f"eval/return_step_{min(points, 2) - 1}"}
    assert shared | {f"{split}/return_after" for split in splits} | {"test/return_random"} <= tags
    own = {
        "memory": {"eval/trial_return", "test/trial_return"},
        "gradient": {"test/return_scratch"},
        "demonstrations": {"test/return_scratch", "test/value_difference", "test/value_difference_demonstrated_step_2"},
    }
    assert own.get(by, set()) <= tags
    assert any(tag.startswith(("loss/", "fitness/")) for tag in tags), "what it learns by is logged"
    shown = capsys.readouterr().out
    assert "held-out tasks" in shown
    said = {"memory": "sum of 2 episodes", "nothing": "without adaptation", "demonstrations": "2 demonstrations"}
    assert said.get(by, "after step 2") in shown


@pytest.mark.parametrize(("algo", "env"), [("thompson", "bandit"), ("psrl", "tabular_mdp"), ("oracle", "gridworld")])
def test_a_reference_is_tested_like_an_algorithm(algo, env, tmp_path, capsys):
    run_here(tmp_path / "run", *TINY_REFERENCE, f"algo={algo}", f"env={env}", "algo.episodes=3")
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["status"] == "finished"
    result = json.loads((folder.results / "test.json").read_text())
    returns = np.array(result["adapted"]["task_returns"])
    assert returns.shape == (3, 4), "one row an episode, one column a task"
    assert result["trial"]["episodes"] == 3
    assert result["trial"]["mean"] == pytest.approx(returns.sum(0).mean(), rel=1e-5)
    assert np.array(result["optimum"]).shape == (4,)
    tags = {tag for row in logged(folder.path) for tag in row}
    assert {
        "test/regret",
        "test/regret_after",
        "test/return_optimum",
        "test/trial_return",
        "test/return_step_2",
        "test/return_random",
    } <= tags
    shown = capsys.readouterr().out
    for text in ("episode 3", "sum of 3 episodes", "optimum", "regret per episode (optimum minus return)"):
        assert text in shown
    assert result["regret"] == pytest.approx(np.mean(result["optimum"]) - result["trial"]["mean"] / 3, abs=1e-4)
    if algo == "oracle":
        assert result["regret"] == pytest.approx(0, abs=1e-4)
        assert returns == pytest.approx(np.tile(result["optimum"], (3, 1))), "told the task, it is the optimum"
    retest.run(validate(retest.Config, compose_values("test", [f"run={folder}", "trial=5", "hardware=cpu"])), Job({}, []))
    assert "sum of 5 episodes" in capsys.readouterr().out
    adapt.run(
        validate(AdaptConfig, compose_values("adapt", [f"run={folder}", "gif=true", "episodes=5", "hardware=cpu"])),
        Job({}, []),
    )
    assert (folder.path / "adapted" / "nominal" / "trial.gif").stat().st_size > 500


def test_a_run_folder_holds_what_it_must(finished):
    names = {p.name for p in finished.iterdir() if not p.name.startswith("events")}
    written = {"config.yaml", "run.json", "tasks.json", "metrics.jsonl", "last.pt", "best.pt", "results", "console.log"}
    assert names == {".lock", *written}
    manifest = json.loads((finished / "run.json").read_text())
    assert manifest["choices"]["algo"] == "maml_dqn"
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    config = RunFolder(finished).config()
    family = build(config).family
    tasks = json.loads((finished / "tasks.json").read_text())
    for split, num in (("validation", 3), ("test", 4), ("ood", 4)):
        assert tasks[split]["hash"] == task_hash(held_out_tasks(family, split, num, config.tasks_seed))
    assert all((finished / "results" / f"{split}.png").stat().st_size > 10_000 for split in ("test", "ood"))


def test_a_run_goes_on_with_other_values_that_change_no_result(finished):
    folder, other = RunFolder(finished), compose_train("train.log_every=9", "hardware=cpu", "hardware.threads=2")
    config = folder.continued(other, ["train.log_every=9", "hardware.threads=2"])
    assert (config.train.log_every, config.hardware.threads, config.run) == (9, 2, str(finished))
    assert config.train.checkpoint_every == folder.config().train.checkpoint_every
    assert config.algo == folder.config().algo
    for word in ("train.eval_every=9", "algo.outer.lr=0.5", "algo=dqn", "algo/search=snes"):
        with pytest.raises(UserError, match="goes on as it was made; "):
            folder.continued(compose_train(*([word] if "/" not in word else ["algo=evo_dqn", word])), [word])


def test_what_was_printed_is_kept(finished, tmp_path):
    log = (finished / "console.log").read_text()
    for text in ("new run folder: ", "4/4  ", "4 held-out tasks", "after step 2", "look at it: tensorboard --logdir"):
        assert text in log
    words = [*small("maml_dqn"), "algo.inner.lr=1e30", "algo.inner.steps=3", f"run={tmp_path / 'run'}"]
    done = metarl("train", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] in (tmp_path / "run" / "console.log").read_text()


def test_the_command_of_a_run_repeats_it(tmp_path):
    """In a sweep each job has its own, quoted, and with the folder of configurations that it needs."""
    mine = tmp_path / "my conf"
    (mine / "algo").mkdir(parents=True)
    (mine / "algo" / "mine.yaml").write_text("defaults: [maml_dqn]\nouter: {lr: 0.005}\n")
    words = [word for word in small("maml_dqn")[1:] if not word.startswith("learner.")]
    words += ["algo=mine", "learner.network.hidden=[8],[8,8]"]
    sweep = metarl("train", "-m", "--config-dir", str(mine), *words, cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    table = sweep.stdout[sweep.stdout.index("2 jobs") :]
    assert "hidden=[8] " in table
    assert "hidden=[8,8] " in table
    assert len(json.loads(next((tmp_path / "outputs" / "sweeps").rglob("jobs/1.json")).read_text())["columns"]) == 2
    runs = sorted(path for path in (tmp_path / "outputs").iterdir() if path.name != "sweeps")
    assert [path.name.split("-")[:2] for path in runs] == [["mine", "cartpole_family"]] * 2
    for path, hidden in zip(runs, ("8", "8_8"), strict=True):
        assert f"-learner.network.hidden_{hidden}-" in path.name
    for path in runs:
        _, *again = shlex.split(RunFolder(path).manifest()["command"])
        repeated = metarl(*again, cwd=tmp_path)
        assert f"{path.relative_to(tmp_path)} is finished already" in repeated.stdout, repeated.stderr


@pytest.mark.parametrize(
    ("number", "age"),
    [
        (None, "an older version of metarl .format 1"),
        (7, "an older version of metarl .format 7"),
        (9, "a newer version of metarl .format 9"),
    ],
)
def test_a_run_of_another_format_is_refused(number, age, finished, tmp_path):
    manifest = json.loads((finished / "run.json").read_text())
    assert manifest.pop("format") == 8
    (tmp_path / "run.json").write_text(json.dumps(manifest | ({"format": number} if number else {})))
    with pytest.raises(UserError, match=f"was made by {age}.; train it again, or use the version in its run.json"):
        RunFolder(tmp_path).config()


def test_a_finished_run_does_nothing_and_says_so(finished):
    before = (finished / "last.pt").read_bytes()
    again = metarl("train", f"run={finished}", cwd=finished.parent)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert (finished / "last.pt").read_bytes() == before


def test_going_on_refuses_another_configuration(finished):
    again = metarl("train", f"run={finished}", "seed=5", cwd=finished.parent)
    assert again.returncode == 2
    assert "seed is 0 in the run, 5 here" in again.stderr


# proofs: what they save is much like that of others
MORE = ("adrl", "context_bc", "dream_dqn", "mandril", "osi_dqn", "pearl_dqn", "rl2_dqn", "robust_dqn")
KILLED = [
    pytest.param(algo, marks=[] if algo == "maml_dqn" else [pytest.mark.slow, *[pytest.mark.proof] * (algo in MORE)])
    for algo in [*(algo for algo in algorithms() if not variant("algo", algo)), "pearl"]  # with another learner than its base
]


@pytest.mark.parametrize("algo", KILLED)
def test_killed_at_random_moments_equals_never_killed(algo, tmp_path):
    """kill -9 three times, each time continued: the same weights, optimiser, replay, generators and metrics."""
    every_iteration = "train.checkpoint_every=1e-6"
    arguments = [*small(algo), "train.iterations=60", "train.eval_every=15", every_iteration]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run_here(whole, *arguments)  # an interpreter whose hashes are seeded otherwise than those of what is killed
    rng = random.Random(0)
    for _ in range(3):
        moment = rng.randint(1, 6), rng.uniform(0, 2)  # in checkpoints, not seconds: a fast machine is killed as early
        process = start("train", *arguments, f"run={torn}", cwd=tmp_path, err=str(tmp_path / "err"), kill=moment)
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "err").read_text()
    assert RunFolder(torn).manifest()["status"] == "running", "killed before it was done, or the kills prove nothing"
    done = metarl("train", *arguments, f"run={torn}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from iteration" in done.stdout
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(torn), strict=True))
    assert logged(whole) == logged(torn)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the first checkpoint", "while testing"])
def test_killed_outside_the_checkpoints_counts_nothing_twice(moment, tmp_path):
    arguments = [*small("maml_dqn"), "train.iterations=30", "train.checkpoint_every=1000"]
    if moment == "while testing":
        arguments += ["test.tasks=60", "test.episodes=30", "env.horizon=300"]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run_here(whole, *arguments)  # an interpreter whose hashes are seeded otherwise than those of what is killed
    sign = torn / ("metrics.jsonl" if moment == "before the first checkpoint" else "results/test.json")
    process = start("train", *arguments, f"run={torn}", cwd=tmp_path, err=str(tmp_path / "err"))
    wait_until(lambda: (sign.exists() and sign.stat().st_size) or not process.is_alive(), f"{sign.name} of the run")
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "err").read_text()
    assert RunFolder(torn).manifest()["status"] == "running"
    assert (torn / "last.pt").exists() == (moment == "while testing")
    assert metarl("train", *arguments, f"run={torn}", cwd=tmp_path).returncode == 0
    assert logged(whole) == logged(torn)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(torn), strict=True))


def test_killed_while_the_folder_was_made(tmp_path):
    torn = tmp_path / "torn"
    (torn / "results").mkdir(parents=True)
    (torn / ".lock").touch()
    (torn / "tasks.json").write_text("{")
    (torn / ".config.yaml.123.tmp").write_text("half")
    (torn / "results" / ".test.png.123.tmp").write_text("half")
    assert np.isfinite(run_here(torn, *small("maml_dqn")))
    assert not list(torn.rglob(".*.tmp"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not a run \(it holds thesis.tex\)"):
        run_here(tmp_path, *small("maml_dqn"))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="cannot write in"):
        run_here(tmp_path / "thesis.tex" / "run", *small("maml_dqn"))
    (own := tmp_path / "own" / "demonstrator").mkdir(parents=True)
    with pytest.raises(UserError, match=r"not a run \(it holds demonstrator\)"):
        RunFolder(own.parent).lock()


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(self, metrics, step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tracker, "log", full)
    with pytest.raises(UserError, match=r"No space left on device; go on with: metarl train run="):
        run_here(tmp_path / "run", *small("maml_dqn"))
    assert RunFolder(tmp_path / "run").manifest()["status"] == "failed"
    monkeypatch.undo()
    assert np.isfinite(run_here(tmp_path / "run", *small("maml_dqn")))
    assert RunFolder(tmp_path / "run").manifest()["error"] is None


def test_divergence_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="training diverged at iteration"):
        run_here(tmp_path / "run", *small("maml_dqn"), "algo.inner.lr=1e30", "algo.inner.steps=3")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, -signal.SIGTERM),
        pytest.param(signal.SIGHUP, -signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, -signal.SIGUSR2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_signals_save_first(number, code, tmp_path):
    arguments = [
        *small("maml_dqn"),
        "train.iterations=100000",
        "train.checkpoint_every=1000",
        f"run={tmp_path / 'run'}",
    ]
    process = subprocess.Popen([*METARL, "train", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: (tmp_path / "run" / "best.pt").exists() or process.poll() is not None, "the first evaluation")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert b"saved; go on with: metarl train run=" in out
    assert err.startswith(b"saving after this iteration; again to stop at once\n")
    assert b"Traceback" not in err
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state["iteration"] >= 2
    assert RunFolder(tmp_path / "run").manifest()["status"] == "interrupted"


def test_a_terminal_that_goes_leaves_a_saved_run(tmp_path):
    run = tmp_path / "run"
    master, slave = os.openpty()
    arguments = [*small("maml_dqn"), "train.iterations=100000", "train.checkpoint_every=1000", f"run={run}"]
    process = subprocess.Popen([*METARL, "train", *arguments], cwd=tmp_path, preexec_fn=lambda: os.login_tty(slave))
    os.close(slave)
    os.set_blocking(master, False)

    def trains() -> bool:
        with contextlib.suppress(OSError):
            os.read(master, 2**16)
        return (run / "best.pt").exists() or process.poll() is not None

    wait_until(trains, "the first evaluation")
    os.close(master)
    assert process.wait(PATIENCE) == -signal.SIGHUP
    assert RunFolder(run).manifest()["status"] == "interrupted"
    assert checkpoint.load(run / "last.pt")["iteration"] >= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_the_test_at_the_end_at_once(number, tmp_path):
    run = tmp_path / "run"
    process = start("train", *small("maml_dqn"), "test.episodes=100000", f"run={run}", cwd=tmp_path, out=str(tmp_path / "out"))
    wait_until((run / "last.pt").exists, "the end of training")
    os.kill(process.pid, number)
    process.join(PATIENCE)
    assert process.exitcode == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}[number]
    assert RunFolder(run).manifest()["status"] == "interrupted"
    assert "saved; go on with: metarl train run=" in (tmp_path / "out").read_text()
    assert not (run / "results" / "test.json").exists()


def test_evaluation_changes_no_training_bit(tmp_path):
    """Neither the number of evaluation tasks, nor episodes, nor the period."""
    run_here(tmp_path / "a", *small("maml_dqn"), "train.eval_every=1", "eval.tasks=2")
    run_here(tmp_path / "b", *small("maml_dqn"), "train.eval_every=4", "eval.tasks=7", "eval.episodes=3")
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True))


def test_same_seed_same_bits_other_seed_other(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_here(tmp_path / name, *small("maml_dqn"), f"seed={seed}")
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True))
    assert not all(torch.equal(a, c) for a, c in zip(weights(tmp_path / "a"), weights(tmp_path / "c"), strict=True))


def test_going_on_keeps_the_hardware_it_was_made_with(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    RunFolder(copy).note(status="interrupted", device="cuda")
    done = metarl("train", f"run={copy}", cwd=tmp_path)
    assert done.returncode == 2
    assert "was made on cuda and cannot go on on cpu" in done.stderr
    assert RunFolder(copy).config().hardware.device == "cpu"  # as the run was made, not the default


def test_going_on_refuses_other_tasks(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    RunFolder(copy).note(tasks={**RunFolder(copy).manifest()["tasks"], "test": "0123456789abcdef"})
    done = metarl("test", f"run={copy}", cwd=tmp_path)
    assert done.returncode == 2
    assert "the test tasks of" in done.stderr


def test_test_command_on_more_tasks_and_steps(finished):
    done = metarl("test", f"run={finished}", "tasks=6", "episodes=1", "steps=3", "split=ood", cwd=finished.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads((finished / "results" / "ood-best-tasks6-episodes1-steps3.json").read_text())
    assert np.array(result["adapted"]["task_returns"]).shape == (4, 6)
    assert "after step 3" in done.stdout


def test_test_command_repeats_the_end_of_training(finished):
    done = metarl("test", f"run={finished}", cwd=finished.parent)
    assert done.returncode == 0, done.stderr
    again = json.loads((finished / "results" / "test-best-tasks4-episodes2-steps2.json").read_text())
    assert again["adapted"] == json.loads((finished / "results" / "test.json").read_text())["adapted"]


def test_adapt_to_a_named_task(finished, tmp_path):
    task = ["task.gravity=20", "task.force_mag=-8"]
    done = metarl("adapt", f"run={finished}", *task, "steps=2", "gif=true", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("before adaptation", "after step 1", "after step 2"))
    policy = checkpoint.load(tmp_path / "out" / "policy.pt")
    assert policy["task"]["gravity"] == 20
    assert policy["task"]["force_mag"] == -8
    assert policy["policy"]["params"]["head.weight"].shape == (1, 2, 8)
    for name in ("before", "after"):
        assert (tmp_path / "out" / f"{name}.gif").read_bytes().startswith(b"GIF89a")
    wrong = metarl("adapt", f"run={finished}", "task.gravty=20", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "gravty" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("algo", algorithms(by="memory"))
def test_adapt_within_a_trial_keeps_a_memory_to_go_on_from(algo, tmp_path, capsys, pictures):
    run_here(tmp_path / "run", *small(algo, "gridworld"))
    folder = RunFolder(tmp_path / "run")
    values = [f"run={folder}", "+task.goal_x=4", "+task.goal_y=2", "trial=3", "episodes=3", "hardware=cpu"]
    score = adapt.run(validate(AdaptConfig, compose_values("adapt", values)), Job({}, []))
    assert np.isfinite(score)
    shown = capsys.readouterr().out
    for text in ("episode 3", "sum of 3 episodes", "episode 3: (0,0) (", "policy.pt"):
        assert text in shown
    out = folder.path / "adapted" / "goal_x=4-goal_y=2"
    assert (out / "adaptation.png").stat().st_size > 10_000
    policy = checkpoint.load(out / "policy.pt")
    best = checkpoint.load(folder.best)["algorithm"]["weights"]
    assert all(torch.equal(a, b) for a, b in zip(flat(policy["weights"]), flat(best), strict=True))
    assert policy["policy"]["episodes"] == 3
    assert len(json.loads((out / "adaptation.json").read_text())["returns"]) == 3

    loaded = load_policy(out / "policy.pt")  # elsewhere: the memory alone says what was seen
    assert (loaded.task["goal_x"], loaded.task["goal_y"]) == (4, 2)
    fresh = loaded.policy.start(1, torch_rng(0, "trial"))
    memory = {name: loaded.state[name] for name in fresh}
    assert [x.shape for x in flat(memory)] == [x.shape for x in flat(fresh)]
    assert not all(torch.equal(a, b) for a, b in zip(flat(memory), flat(fresh), strict=True))
    family = build(folder.config()).family
    env = family.make(family.named_task({"goal_x": 4.0, "goal_y": 2.0}), 1, torch_rng(0, "env"))
    assert loaded(env.obs[0, 0].numpy()) in range(5)


@pytest.mark.parametrize("file", ["last.pt", "config.yaml"])
def test_a_damaged_run_is_refused_in_one_line(finished, tmp_path, file):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    RunFolder(copy).note(status="interrupted")
    (copy / file).write_bytes((copy / file).read_bytes()[:100] + b"\x00\xff")
    done = metarl("train", f"run={copy}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("metarl: error: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("algo", {"module": "../../evil"}, "no such module"),
        ("algo", {"_target_": "os.system"}, "code is named by module"),
        ("env", {"module": "${oc.env:HOME}"}, "no such module"),
        ("learner", {"loss": "${oc.env:HOME}"}, "a text may not name code"),
        ("learner", {"loss": "/etc/passwd"}, "a text may not name code"),
        ("seed", -1, "seed"),
        ("seed", float("inf"), "seed"),
    ],
)
def test_a_hostile_configuration_is_refused(finished, tmp_path, key, value, said):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config[key] = {**config[key], **value} if isinstance(value, dict) else value
    configured(copy, yaml.safe_dump(config))
    with pytest.raises(UserError, match=said):
        RunFolder(copy).config()


def configured(folder: Path, text: str) -> None:
    """Change a run's configuration as a stranger could: with the right hash."""
    (folder / "config.yaml").write_text(text)
    hashes = RunFolder(folder).manifest()["sha256"]
    RunFolder(folder).note(sha256={**hashes, "config.yaml": hashlib.sha256(text.encode()).hexdigest()})


def test_weights_of_another_network_are_refused(finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    configured(copy, (copy / "config.yaml").read_text().replace("layer_norm: false", "layer_norm: true"))
    done = metarl("test", f"run={copy}", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not fit the run's configuration" in done.stderr


def test_one_process_per_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    done = metarl("train", *small("maml_dqn"), f"run={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 2
    assert "another process" in done.stderr


@pytest.mark.slow
def test_tensorboard_serves_scalars_hparams_and_figures(finished, tmp_path):
    """What a browser would ask the real server for."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(finished.parent), "--port", "0", "--host", "127.0.0.1"]
    said = tmp_path / "said"
    with said.open("w") as err:
        server = subprocess.Popen(command, stderr=err, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        wait_until(lambda: "http://" in said.read_text() or server.poll() is not None, "TensorBoard's address")
        port = re.search(r"http://127\.0\.0\.1:(\d+)/", said.read_text())[1]

        def ask(path: str, body: dict | None = None):
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/data/{path}", data=data)
            if body is not None:
                request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read())

        wait_until(lambda: finished.name in ask("runs"), "the run in TensorBoard")
        tags = ask("plugin/scalars/tags")[finished.name]
        first = [f"adaptation/{name}" for name in ("eval_return_after", "eval_return_before", "ood_return_after")]
        first += [f"adaptation/{name}" for name in ("test_return_after", "test_return_before")]
        assert sorted(tags)[:5] == first, "the first panel, and the metrics that HParams shows"
        assert {"test/return_step_2", "loss/query"} <= set(tags)
        points = ask(f"plugin/scalars/scalars?run={finished.name}&tag=adaptation/eval_return_after")
        mine = [row["eval/return_after"] for row in logged(finished) if "eval/return_after" in row]
        assert [p[2] for p in points] == pytest.approx(mine)
        images = ask("plugin/images/tags")[finished.name]
        assert {"test/adaptation", "ood/adaptation"} <= set(images)
        layout = ask("plugin/custom_scalars/layout")
        charts = {category["title"]: {chart["title"] for chart in category["chart"]} for category in layout["category"]}
        assert charts == {
            "Adaptation": {"validation: before and after", "validation: each step", "validation: after, 95 %"}
            | {"held out: before and after"},
            "Training": {"loss", "gradient norm", "inner learning rate"},
        }, "what a run of MAML has, and nothing else"
        texts = ask("plugin/text/tags")[finished.name]
        assert {"run/command/text_summary", "run/configuration/text_summary"} <= set(texts)
        session = {"experimentName": "", "colParams": [], "startIndex": 0, "sliceSize": 10}
        session["allowedStatuses"] = ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"]
        groups = ask("plugin/hparams/session_groups", session)["sessionGroups"]
        shown = groups[0]["hparams"]
        assert (shown["algo"], shown["env"], shown["seed"]) == ("maml_dqn", "cartpole_family", 0)
        assert shown["algo.outer.batch"] == 8, "what was overridden"
        assert "experiment" not in shown, "there is none, and no None"
        assert "algo.inner.steps" not in shown
        assert groups[0]["sessions"][0]["status"] == "STATUS_SUCCESS"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="perhaps another allocator")
@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY, reason="little address space")
def test_memory_of_freed_tensors_is_kept():
    """The system is asked for a large tensor's memory once, and however much is free, it is kept."""
    program = """
import ctypes, resource, torch
from metarl_cli.cli.process import keep_memory
keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert min(faults() for _ in range(4)) < 1000  # the heap may still grow in the first round
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes, libc.malloc.argtypes = [ctypes.c_void_p], [ctypes.c_size_t]
blocks = [libc.malloc(1500 * 2**20) for _ in range(2)]  # never touched: no memory yet
top = libc.sbrk(0)
for block in blocks:
    libc.free(block)
assert libc.sbrk(0) == top
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=CONF.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Nothing is lost by going on: what is missing, mistyped or full is one line, the right status, and nothing deleted."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_train, flat, slow_if, tiny
from launching import PATIENCE, wait_until
from pydantic import ValidationError

import metarl_cli as metarl
from metarl_cli.cli import train
from metarl_cli.config.models import Job
from metarl_cli.errors import UserError
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.runs import checkpoint
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Training
from metarl_cli.runs.run import Run
from metarl_cli.runs.tracking import Tracker


def small(algo: str) -> list[str]:
    return [f"algo={algo}", "env=cartpole_family", *tiny(algo)]


def run(folder: Path, *overrides: str) -> float:
    """``metarl train`` in this process, as if it was typed."""
    typed = [f"run={folder}", *overrides]
    return train.run(compose_train(*typed), Job({"algo": "a", "env": "e"}, typed))


def stopped(folder: Path, monkeypatch, *overrides: str, iterations: int = 2) -> None:
    """A run that has been stopped by Ctrl-C after some iterations."""
    save = Training.save

    def stop(self):
        save(self)
        if self.iteration == iterations:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, *overrides, "train.checkpoint_every=1e-6")
    assert RunFolder(folder).manifest()["status"] == "interrupted"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(folder, *small("maml_dqn"))
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_without_its_last_checkpoint_a_run_is_left_as_it_is(tmp_path, monkeypatch):
    stopped(tmp_path / "run", monkeypatch, *small("maml_dqn"))
    (tmp_path / "run" / "last.pt").unlink()
    before = content(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot go on, for last.pt is gone: .*metarl test run="):
        run(tmp_path / "run")
    after = content(tmp_path / "run")
    assert {name for name in before if before[name] != after.get(name)} == set()


@pytest.mark.parametrize("iterations", [2, 4], ids=["in the middle", "before the test"])
def test_without_its_best_checkpoint_a_run_goes_on_and_says_so(iterations, tmp_path, monkeypatch, capsys):
    stopped(tmp_path / "run", monkeypatch, *small("maml_dqn"), iterations=iterations)
    (tmp_path / "run" / "best.pt").unlink()
    score = run(tmp_path / "run")
    assert np.isfinite(score)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["best"] == score
    assert "best.pt is gone: the best weights are chosen anew" in capsys.readouterr().out
    assert RunFolder(tmp_path / "run").manifest()["status"] == "finished"
    assert Run(tmp_path / "run").test(episodes=1)


def test_a_finished_run_without_its_best_checkpoint_says_what_is_left(copy):
    (copy / "best.pt").unlink()
    with pytest.raises(UserError, match=r"best.pt is gone; take the other one with checkpoint=last"):
        Run(copy)
    assert Run(copy, checkpoint="last").test(episodes=1)


@pytest.mark.parametrize("more", [[], ["train.iterations=9"], ["hardware.threads=2", "train.log_every=1"]], ids=str)
def test_a_mistyped_run_is_no_new_one(more, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "maml-seed0")
    with pytest.raises(UserError, match=r"no such run: .*mamlseed0; did you mean maml-seed0"):
        run(tmp_path / "mamlseed0", *more)
    with pytest.raises(UserError, match=r"no such run: .*; to begin one there, say what it learns"):
        run(tmp_path / "elsewhere" / "other", *more)
    assert [path.name for path in tmp_path.iterdir()] == ["maml-seed0"]


def test_a_signal_during_the_last_test_is_an_interruption(tmp_path):
    overrides = [*small("maml_dqn"), "test.tasks=60", "test.episodes=30", "env.horizon=300", f"run={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "metarl_cli", "train", *overrides]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: (tmp_path / "run" / "last.pt").exists() or process.poll() is not None, "the end of training")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGTERM, err
    assert b"saved; go on with: metarl train run=" in out
    assert b"Traceback" not in err
    assert RunFolder(tmp_path / "run").manifest()["status"] == "interrupted"


def test_a_run_that_is_refused_leaves_its_folder_free(copy):
    folder = RunFolder(copy)
    folder.note(status="interrupted", device="cuda:0")
    with pytest.raises(UserError, match="was made on cuda"):
        run(copy)
    assert not folder.reserve.exists()
    folder.lock()
    folder.unlock()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(number, tmp_path, monkeypatch, capsys):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert np.isfinite(run(tmp_path / "run", *small("maml_dqn")))
    assert "has no locks: see to it that no other process trains this run" in capsys.readouterr().out


def test_a_full_disk_leaves_the_right_status(tmp_path, monkeypatch):
    """Nothing fits but what the reserve has kept."""
    fsync, folder = os.fsync, RunFolder(tmp_path / "run")

    def full(descriptor):
        if folder.reserve.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    log = Tracker.log

    def fill(self, metrics, step):
        monkeypatch.setattr(os, "fsync", full)
        log(self, metrics, step)

    monkeypatch.setattr(Tracker, "log", fill)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        run(folder.path, *small("maml_dqn"))
    assert folder.manifest()["status"] == "failed"
    assert not list(folder.path.rglob(".*.tmp"))
    monkeypatch.undo()
    assert np.isfinite(run(folder.path))
    assert folder.manifest()["status"] == "finished"
    assert not folder.reserve.exists()


def test_a_disk_that_is_full_after_a_checkpoint_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    fsync, folder = os.fsync, RunFolder(tmp_path / "run")

    def full(descriptor):
        if folder.last.exists() and folder.reserve.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        run(folder.path, *small("maml_dqn"), "train.checkpoint_every=1e-6")
    assert f"the last checkpoint is {folder.last}; go on with: {folder.command('train')}" in capsys.readouterr().out
    assert folder.manifest()["status"] == "failed"


@pytest.mark.parametrize("algo", slow_if(["dqn", "maml_dqn", "rl2_dqn", "rl2", "es_dqn"], lambda algo: algo != "maml_dqn"))
def test_a_finished_run_drops_its_replay_and_can_be_made_longer(algo, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    run(folder.path, *small(algo))
    state = checkpoint.load(folder.last)["algorithm"]
    replay = state.get("replay", {"added": 0})
    assert replay["added"] == 0
    assert sum(x.numel() for x in flat(replay)) <= 12, "at most the lengths of no trials"
    score, weights = folder.manifest()["score"], flat(state["weights"])
    for fewer in (2, 4):
        if fewer == 4:  # as it is: nothing to do
            run(folder.path, f"train.iterations={fewer}")
            assert folder.manifest()["score"] == score
        else:
            with pytest.raises(UserError, match=r"train.iterations is 4 in the run, 2 here"):
                run(folder.path, f"train.iterations={fewer}")
    capsys.readouterr()
    assert np.isfinite(run(folder.path, "train.iterations=6"))
    assert "going on from iteration 4 of 6" in capsys.readouterr().out
    manifest = folder.manifest()
    assert (manifest["status"], manifest["iterations"], folder.config().train.iterations) == ("finished", 6, 6)
    state = checkpoint.load(folder.last)
    assert state["iteration"] == 6
    assert not all(torch.equal(a, b) for a, b in zip(weights, flat(state["algorithm"]["weights"]), strict=True))
    typed = compose_train(f"run={folder}", *small(algo))  # the command it was made with, in the folder that has its name
    assert folder.prolonged(typed).train.iterations == 6


@pytest.mark.slow
def test_a_run_cannot_be_longer_than_a_lifetime_of_its_learners(tmp_path):
    run(tmp_path / "run", *small("adrl"))
    with pytest.raises(UserError, match=r"algo.lifetime.steps \(4\) must be train.iterations \(6\)"):
        run(tmp_path / "run", "train.iterations=6")
    assert RunFolder(tmp_path / "run").manifest()["status"] == "finished"


def test_what_could_not_be_read_again_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "defaults: [cartpole_v1]\nconstructor: {render_mode: /somewhere}\n"
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "mine.yaml").write_text(text)
    words = ["--config-dir", "conf", *small("dqn"), "env=mine", "run=run"]
    with pytest.raises(UserError, match=r"env.constructor.render_mode=/somewhere: refused; .*give ./NAME"):
        metarl.train(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_sweep_shows_only_a_result_that_is_whole(copy):
    typed = [f"run={copy}"]
    asked = compose_train(*typed), Job({"algo": "a", "env": "e"}, typed)
    assert train.outcome(*asked).keys() == {"before", "after"}
    path = copy / "results" / "test.json"
    values = json.loads(path.read_text())
    del values["adapted"]["iqm"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"refused .*test.json: adapted: .*neither iqm nor mean"):
        train.outcome(*asked)
    path.unlink()
    assert train.outcome(*asked) == {}


@pytest.mark.parametrize("wrong", [3, "a", [1], None])
def test_the_overridden_keys_of_a_run_are_texts(wrong, copy):
    with pytest.raises(ValidationError, match="overridden"):
        RunFolder(copy).note(overridden=wrong)


def test_a_configuration_that_was_edited_is_refused_with_what_to_do(copy):
    path = copy / "config.yaml"
    path.write_text(path.read_text().replace("episodes: 2", "episodes: 6"))
    with pytest.raises(
        UserError, match=r"it is not as the run was made with; undo the change, or begin a new run: the command"
    ):
        Run(copy)


def test_results_are_compared_with_what_was_written(copy):
    assert set(Run(copy).results) == {"test", "ood"}
    path = copy / "results" / "test.json"
    path.write_text(path.read_text().replace('"episodes": 2', '"episodes": 3'))
    with pytest.raises(UserError, match=r"test.json: it is damaged, or was changed by hand"):
        _ = Run(copy).results


@pytest.mark.parametrize("change", [torch.nan, torch.inf, torch.float64, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("algo", ["maml_dqn", "es_dqn"])
def test_weights_that_are_none_are_refused(change, algo, tmp_path, finished):
    if algo == "maml_dqn":
        shutil.copytree(finished, tmp_path / "run")
    else:
        run(tmp_path / "run", *small(algo))
    path = tmp_path / "run" / "best.pt"
    state = checkpoint.load(path)
    for tensor in flat(state["algorithm"]["weights"])[:1]:
        changed = tensor.to(change) if isinstance(change, torch.dtype) else tensor.mul(change)
        state["algorithm"]["weights"] = replaced(state["algorithm"]["weights"], tensor, changed)
    checkpoint.save(path, {name: value for name, value in state.items() if name != "format"})
    with pytest.raises(UserError, match=r"does not fit the run's configuration .*(not finite|of the type)"):
        Run(tmp_path / "run")


def replaced(value, old, new):
    if value is old:
        return new
    return {name: replaced(item, old, new) for name, item in value.items()} if isinstance(value, dict) else value


def test_no_file_outside_is_touched(finished, tmp_path):
    """A link at every place that a command writes to."""
    victim = tmp_path / "victim"
    places = [
        ".lock",
        ".reserve",
        "last.pt",
        "metrics.jsonl",
        "tasks.json",
        "run.json",
        "results",
        "adapted",
        "results/test.json",
    ]
    for number, place in enumerate(places):
        folder = shutil.copytree(finished, tmp_path / str(number))
        RunFolder(folder).note(status="interrupted")
        victim.write_text("precious")
        link = folder / place
        if link.is_dir():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        for command in (lambda folder=folder: run(folder), lambda folder=folder: Run(folder)):
            with pytest.raises(UserError, match="it is a link; a run folder holds files and folders alone"):
                command()
        assert victim.read_text() == "precious"


def test_a_folder_that_is_not_begun_may_not_hold_a_link_either(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "run" / "results").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="it is a link"):
        run(tmp_path / "run", *small("maml_dqn"))
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.slow
def test_the_last_test_is_repeated_after_an_interruption(tmp_path, monkeypatch):
    """Ctrl-C in the middle of the test leaves what the run needs, and the same score."""
    run(tmp_path / "whole", *small("maml_dqn"))

    def stop(self, *args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "report", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "torn", *small("maml_dqn"))
    assert RunFolder(tmp_path / "torn").manifest()["status"] == "interrupted"
    run(tmp_path / "torn")
    assert RunFolder(tmp_path / "torn").manifest()["score"] == RunFolder(tmp_path / "whole").manifest()["score"]

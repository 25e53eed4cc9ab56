"""A stranger's folder of configurations composes values; it cannot have Hydra, or Python's logging, build what it names."""

import pytest
from hostile import BOMB, HYDRA

from metarl_cli.cli.compose import Composer
from metarl_cli.cli.main import main
from metarl_cli.errors import UserError

ALLOWED = {
    "nothing of Hydra's": "seed: 3",
    "the log file of Hydra": "defaults: [override /hydra/job_logging: default]",
    "the launcher of Hydra": "defaults: [override /hydra/launcher: basic]",
    "a sweep": "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}",
    "a callback of Hydra's": "hydra: {callbacks: {x: {_target_: hydra.experimental.callbacks.LogJobReturnCallback}}}",
}


def write(folder, text: str):
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "source").write_text("precious")
    text = text.replace("SRC", str(folder / "source")).replace("DST", str(folder / "made"))
    (folder / "conf" / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    return str(folder / "conf")


@pytest.mark.parametrize("text", HYDRA.values(), ids=HYDRA)
def test_what_it_names_is_not_built(text, tmp_path):
    folder = write(tmp_path, text)
    with pytest.raises(UserError, match=r"^hydra\.[\w.()]+.*: refused; "):
        Composer("train", folder).settle(["experiment=evil"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("words", [[], ["--hydra-help"], ["--cfg", "job"]], ids=str)
@pytest.mark.parametrize("full", ["0", "1"], ids=["", "HYDRA_FULL_ERROR"])
def test_no_command_builds_it(words, full, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", full)
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, HYDRA["callback"])
    assert main(["train", "--config-dir", folder, "experiment=evil", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarl: error: hydra.callbacks.x._target_=shutil.copyfile: refused")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ALLOWED.values(), ids=ALLOWED)
def test_what_is_hydras_own_is_left_alone(text, tmp_path):
    composer = Composer("train", write(tmp_path, text))
    assert composer.settle(["experiment=evil"]) is not None
    assert not composer.problems


def test_the_command_line_is_the_users_own(tmp_path):
    composer = Composer("train", write(tmp_path, "seed: 3"))
    assert composer.settle(["experiment=evil", "+hydra.job.env_set.OMP_NUM_THREADS=1"]) is not None
    assert not composer.problems


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "a: " + "[" * 5000], ids=["bomb", "loop", "deep"])
def test_a_hostile_yaml_is_one_line(text, tmp_path, capsys):
    assert main(["train", "--config-dir", write(tmp_path, text), "experiment=evil", "--cfg", "job"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evil.yaml: " in line


@pytest.mark.parametrize("text", ["a: [", f"a: {'9' * 5000}", "a: \x00", "- a"], ids=lambda text: repr(text[:9]))
def test_a_broken_yaml_is_one_line_where_it_is_used_alone(text, tmp_path, capsys):
    folder = write(tmp_path, text)
    assert main(["train", "--config-dir", folder, "experiment=evil", "--cfg", "job"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarl: error: ")
    assert main(["train", "--config-dir", folder, "--cfg", "job"]) == 0

"""Prices from a file: the replay against the file, splits in time, and files that are refused with the line at fault."""

from itertools import product

import numpy as np
import pytest
import torch
from conftest import compose_train, compose_values, load

from metarl_cli.envs.csv_file import LARGEST, read_column
from metarl_cli.errors import UserError
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng


def family(*overrides: str):
    module, config = load("env", compose_train("env=trading_csv", *overrides).env)
    return module.Family(config)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, in which the command is typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rising(folder, num=400):
    """A file of prices all of whose returns differ, the size of each telling its row; and these returns."""
    returns = 0.001 * (1 + np.arange(num) / num) * (-1.0) ** np.arange(num)
    prices = 50 * np.exp(np.concatenate([[0.0], np.cumsum(returns)]))
    path = folder / "prices.csv"
    path.write_text("date,close\n" + "".join(f"day {i},{price!r}\n" for i, price in enumerate(prices.tolist())))
    return path, returns


def test_a_window_is_replayed(here, float64):
    """Returns in the unit of the training split, the latest first, nothing of what comes; rewards by hand."""
    path, returns = rising(here)
    ours = family(f"env.file={path.name}", "env.horizon=4", "env.lookback=3")
    unit = returns[:240].std()
    env = ours.make(ours.named_task({"start": 250.0, "cost": 0.1}), 1, torch_rng(0, "env"))
    window = (returns[250:254] / unit).tolist()
    assert env.obs.flatten().tolist() == [0, 0, 0, 0]
    first = env.step(torch.tensor([[2]]))
    assert first.next_obs.flatten().tolist() == pytest.approx([window[0], 0, 0, 1], rel=1e-6)
    assert float(first.reward) == pytest.approx(window[0] - 0.1, rel=1e-6)
    second = env.step(torch.tensor([[0]]))
    assert second.next_obs.flatten().tolist() == pytest.approx([window[1], window[0], 0, -1], rel=1e-6)
    assert float(second.reward) == pytest.approx(-window[1] - 0.2, rel=1e-6)
    steps = [env.step(torch.tensor([[1]])) for _ in range(2)]
    assert float(steps[1].reward) == 0
    assert bool(steps[1].truncated)
    assert env.obs.flatten().tolist() == [0, 0, 0, 0], "the window again, from its start"


def test_who_knows_what_comes_has_the_best_of_all_ways(float64):
    ours = family("env.horizon=5")
    task = ours.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    for window, cost, best in zip(task["returns"].tolist(), task["cost"].tolist(), ours.optimum(task).tolist(), strict=True):
        ways = product((-1, 0, 1), repeat=5)
        gained = (sum(p * r - cost * abs(p - q) for p, q, r in zip(way, (0, *way), window, strict=False)) for way in ways)
        assert best == pytest.approx(max(gained))


def test_splits_follow_each_other_in_time(here, float64):
    """No return is in two splits, training is before validation and that before test; the unit is that of training."""
    path, returns = rising(here)
    ours = family(f"env.file={path.name}", "env.horizon=20")
    rows = np.abs(returns / returns[:240].std())  # of each row another number, growing
    seen = {}
    for split in ours.splits:
        task = ours.sample_tasks(3000, split, numpy_rng(0, "tasks", split))
        seen[split] = {*np.searchsorted(rows, task["returns"].abs().numpy() - 1e-6).flatten().tolist()}
    assert ours.splits == ("train", "validation", "test")
    assert seen == {"train": {*range(240)}, "validation": {*range(240, 320)}, "test": {*range(320, 400)}}


def test_what_comes_after_training_changes_nothing_of_it(here):
    """Neither the unit of returns nor a training task knows of later prices."""
    path, _ = rising(here)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines))
    before = family(f"env.file={path.name}", "env.horizon=50").sample_tasks(5, "train", numpy_rng(0, "tasks"))
    path.write_text("\n".join([*lines[:242], *(f"later,{1 + i % 7}" for i in range(len(lines) - 242))]))
    after = family(f"env.file={path.name}", "env.horizon=50").sample_tasks(5, "train", numpy_rng(0, "tasks"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_windows_are_not_mixed_in_folds():
    with pytest.raises(UserError, match="tasks are cut by time"):
        build(compose_train("env=trading_csv", "algo=rl2", "train.folds=3", "train.pool=12", "eval.tasks=4", "test.tasks=4"))
    inner = compose_values("train", ["env=trading_csv"])["env"]
    module, config = load("env", {"module": "scrambled", "family": inner, "obs_scale": None, "reward_scale": [1.0, 1.0]})
    assert module.Family(config).in_time, "nor those of a family that wraps them"


def test_a_window_outside_training_is_said():
    ours = family()
    assert not ours.untrained({"start": 10.0})
    assert ours.untrained({"start": 5000.0}) == ["start=5000 is a window outside the returns 0 to 3598 of training"]
    for value in (-1.0, 2.5, 9999.0):
        with pytest.raises(ValueError, match="start must be a whole number from 0 to 5899"):
            ours.named_task({"start": value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"date,close\nx,1.5\n\ny,abc\n", r"line 4: close must be a number above 0, got abc"),
        (b"date,close\nx,nan\n", r"line 2: close must be a number above 0, got nan"),
        (b"date,close\nx,1e999\n", r"line 2: close must be a number above 0, got 1e999"),
        (b"date,close\nx,0\n", r"line 2: close must be a number above 0, got 0"),
        (b"date,close\nx,1\ny\n", r"line 3: close is missing"),
        (b"date,close\nx,\n", r"line 2: close must be a number above 0, got nothing"),
        (b"date,closed\nx,1\n", r"line 1: no column close; did you mean closed\? "),
        (b"x," * 10**5 + b"y\n", r"line 1: no column close; its columns: (x, ){20}\.\.\.$"),
        (b"", r"line 1: no column close; its columns: none: it is empty"),
        (b"close\n1\n\xff\n", r"is no text in UTF-8"),
        (b'close\n"1\n', r"line 2: unexpected end of data"),
        (b"close\n" + b"1" * 200_000, r"line 2: field larger than field limit"),
        (b"close\n\x1b[2J\n", r"line 2: close must be a number above 0, got \\x1b\[2J"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(content, message, tmp_path):
    path = tmp_path / "prices.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_column(str(path), "close")


def test_what_is_no_file_or_too_large_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        read_column(str(tmp_path), "close")
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ValueError, match="larger than 32 MiB"):
        read_column(str(large), "close")


def test_a_file_with_a_mark_and_spaces_is_read(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_bytes("\ufeffdate, close\r\n1, 2.5\r\n\r\n2,3e1\r\n".encode())
    assert read_column(str(path), "close").tolist() == [2.5, 30]


def test_prices_that_do_not_suffice_are_one_line(here):
    path, _ = rising(here)
    text = "env: the validation split has 80 of the 400 returns of the prices, and a window 100: lower env.horizon"
    with pytest.raises(UserError, match=text):
        family(f"env.file={path.name}")
    path.write_text("close\n" + "7\n" * 2000)
    with pytest.raises(UserError, match="the prices of the training split never change"):
        family(f"env.file={path.name}")
    with pytest.raises(UserError, match=r"env.file=/etc/hostname: refused; a text may not name .* a place outside"):
        family("env.file=/etc/hostname")

"""Ranges in Hydra's words: what they hold, how values are written, and what is refused."""

import pytest

from metarl_cli.cli.ranges import read_ranges
from metarl_cli.errors import UserError
from metarl_cli.tuning.ranges import Numbers, Options, numbers

VALUES = {
    "algo.outer.lr": 0.002,
    "algo.outer.tasks": 8,
    "algo.inner.clip": None,
    "learner.network.activation": "relu",
    "learner.network.hidden": [64, 64],
    "learner.double": True,
    "hardware.threads": 1,
    "eval.tasks": 50,
    "seed": 0,
}
CHOICES = {"algo": "maml_dqn", "algo/search": "pbt"}

READ = {
    "algo.outer.lr=interval(0.001, 0.01)": Numbers(0.001, 0.01, False, False),
    "algo.outer.lr=interval(0, 1)": Numbers(0.0, 1.0, False, False),  # the key holds a number that is not whole
    "algo.outer.lr=tag(log, interval(1e-4, 1e-2))": Numbers(1e-4, 1e-2, True, False),
    "algo.outer.lr=range(0.0, 1.0, 0.25)": Numbers(0.0, 0.75, False, False, 0.25),  # Hydra leaves the end out
    "algo.outer.tasks=interval(4, 32)": Numbers(4.0, 32.0, False, True),
    "algo.outer.tasks=tag(log, interval(4, 32))": Numbers(4.0, 32.0, True, True),
    "algo.outer.tasks=range(2, 9, 2)": Numbers(2.0, 8.0, False, True, 2),
    "algo.inner.clip=int(interval(1, 5))": Numbers(1.0, 5.0, False, True),  # the default, null, has no kind
    "algo.inner.clip=interval(1, 5)": Numbers(1.0, 5.0, False, False),
    "learner.network.activation=relu,silu": Options(("relu", "silu"), ("relu", "silu")),
    "learner.network.hidden=choice([64,64],[128])": Options(("[64,64]", "[128]"), ([64, 64], [128])),
    "learner.double=true,false": Options(("True", "False"), (True, False)),
    "algo.inner.clip=null,0.5": Options(("null", "0.5"), (None, 0.5)),
    "algo/search=pbt,random": Options(("pbt", "random"), ("pbt", "random")),
}
REFUSED = {
    "algo.outer.lr=interval(0.01, 0.001)": "must be below the upper one, 0.001; did you mean 0.001 to 0.01?",
    "algo.outer.lr=interval(0.01, 0.01)": "must be below",
    "algo.outer.lr=tag(log, interval(0, 0.01))": "begin above 0",
    "algo.outer.lr=tag(exp, interval(0.1, 1))": "tag exp means nothing here",
    "algo.outer.lr=0.01": "is no range",
    "algo.outer.lr=choice(0.1)": "fewer than two values",
    "algo.outer.lr=interval(0.1": "cannot be read",
    "algo.outer.lr=interval(0.1, inf)": "finite",
    "algo.outer.tasks=interval(0.5, 4)": "whole numbers",
    "algo.outer.lrr=interval(0.1, 1)": "no such key; did you mean algo.outer.lr?",
    "learner.double=interval(0, 1)": "holds no number",
    "learner.network.activation=glob(*)": "name the options",
    "hardware.threads=1,2": "it changes no result",
    "eval.tasks=10,20": "cannot be compared",
    "env.horizon=20,40": "different tasks cannot be compared",
    "env=cartpole_family,gridworld": "different tasks cannot be compared",
    "train.iterations=interval(10, 100)": "trials that train for longer",
    "train.eval_every=5,10": "are looked at more often",
    "train.fold=0,1": "different tasks cannot be compared",
    "seed=range(5)": "seeds=N has a trial run on several",
}


def read(words):
    key, text = words.split("=", 1)
    return read_ranges({key: text}, VALUES, CHOICES, {"hardware"})[key]


@pytest.mark.parametrize("words", READ)
def test_reads(words):
    assert read(words) == READ[words]


@pytest.mark.parametrize("words", REFUSED)
def test_refuses(words):
    with pytest.raises(UserError) as caught:
        read(words)
    assert REFUSED[words] in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as caught:
        read_ranges({"algo.x": "interval(0,1)", "algo.outer.lr": "interval(1,0)"}, VALUES, CHOICES, set())
    assert len(caught.value.problems) == 2


def test_numbers_are_written_with_four_digits_and_stay_within():
    log, even = numbers(1e-4, 0.0123456, True, 0.1), numbers(0.9, 0.99999, False, 0.95)
    assert log.written(0.00123456) == "0.001235"
    assert even.written(0.9876543) == "0.98765"  # a ten-thousandth of the range, and so of gamma's distance from 1
    for each in (log, even):
        assert [float(end) for end in each.ends()] == [each.low, each.high]
        assert each.low <= float(each.written(each.high - 1e-9)) <= each.high
    assert numbers(4, 32, True, 8).written(17) == "17"


def test_a_default_is_where_the_range_has_it():
    assert numbers(4, 32, True, 8).has(8)
    assert not numbers(4, 32, True, 8).has(2)
    assert not numbers(4, 32, True, 8).has(None)
    options = Options(("null", "[64,64]"), (None, [64, 64]))
    assert options.has([64, 64])
    assert options.start([64, 64]) == "[64,64]"


def test_a_value_beside_a_bound_is_told():
    log, even = numbers(1e-2, 1.0, True, 0.1), numbers(0.0, 1.0, False, 0.5)
    assert [log.at_end(text) for text in ("0.01119", "0.0126", "0.1", "0.78", "0.81")] == [True, False, False, False, True]
    assert [even.at_end(text) for text in ("0.04", "0.06", "0.94", "0.96")] == [True, False, False, True]

"""Validation: every problem at once, each with its key, its value, what is allowed, and "did you mean"."""

import copy
import pickle
import sys
from importlib import metadata
from types import ModuleType

import pytest
from conftest import compose_values, options
from pydantic import Field

from metarl_cli.config import registry as building
from metarl_cli.config.base import StrictModel
from metarl_cli.config.messages import closest, did_you_mean, flatten
from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import ConfigError, load, validate
from metarl_cli.errors import UserError

TRAIN = compose_values("train", [])


def changed(**changes):
    """The default train values with dotted keys set (``__`` for a dot) or, where the value is ``...``, removed."""
    values = copy.deepcopy(TRAIN)
    for name, value in changes.items():
        *path, last = name.split("__")
        holder = values
        for part in path:
            holder = holder.setdefault(part, {})
        if value is ...:
            del holder[last]
        else:
            holder[last] = value
    return values


def problems(values, command="train") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(command, values)
    return caught.value.problems


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in ("algo", "learner", "env", "hardware") for o in options(g)])
def test_every_option_is_valid(group, option):
    images = ["env=atari_flavours"] if option == "dqn_atari" else []
    try:
        assert isinstance(validate("train", compose_values("train", [f"{group}={option}", *images])), TrainConfig)
    except ConfigError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


def test_test_and_adapt_are_valid_once_the_run_is_named():
    for command, model in (("test", building.TestConfig), ("adapt", building.AdaptConfig)):
        config = validate(command, compose_values(command, ["run=somewhere"]))
        assert isinstance(config, model)
        assert config.run == "somewhere"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"learner__gamma": 2}, "learner.gamma=2: must be a number >= 0 and < 1 (discount per step)"),
        ({"algo__outer__lr": "abc"}, "algo.outer.lr=abc: must be a number > 0 (Adam's learning rate)"),
        ({"algo__tasks": 1.5}, "algo.tasks=1.5: must be an integer > 0 (training tasks, drawn once)"),
        ({"seed": True}, "seed=true: must be an integer >= 0 (the one seed every random stream derives from)"),
        ({"seed": "3"}, "seed=3: must be an integer >= 0 (the one seed every random stream derives from)"),
        ({"train__iterations": -1}, "train.iterations=-1: must be an integer > 0 (meta-iterations)"),
        ({"algo__outer__lr": ...}, "algo.outer.lr: missing; must be a number > 0 (Adam's learning rate)"),
        ({"algo__outer__lrr": 3}, "algo.outer.lrr=3: no such key; did you mean algo.outer.lr?"),
        ({"lr": 3}, "lr=3: no such key; did you mean algo.inner.lr or algo.outer.lr?"),
        ({"test": ...}, "test: missing; must be a group of names and values"),
        ({"algo": ...}, "algo: missing; must be a group of names and values"),
        ({"algo__outer": 3}, "algo.outer=3: must be a group of names and values"),
        (
            {"learner__network__hidden": [8, "x"]},
            "learner.network.hidden.1=x: must be an integer > 0 (units of each hidden layer)",
        ),
        ({"learner__network__hidden": []}, "learner.network.hidden=[]: must be a list of 1 or more integers > 0 (units of"),
        ({"env__ranges__gravity": [3]}, "env.ranges.gravity=[3]: must be a list of 2 numbers ([low, high] of each task"),
        ({"env__ranges__gravity": [3, 2]}, "env: range of gravity must be [low, high] with low <= high"),
        ({"env__ranges__gravty": [1, 2]}, "env: no such task parameter: gravty; known: gravity, masscart"),
        ({"algo__outer__tasks": 1000}, "algo: outer.tasks (1000) must not be above tasks"),
        (
            {"hardware__device": "cuad"},
            "hardware.device=cuad: must be one of auto, cpu, cuda (auto takes a GPU where ",
        ),
        ({"algo__module": "mamll"}, "algo.module=mamll: no such module; did you mean maml? known: "),
        ({"algo__module": ...}, "algo.module: missing; known: "),
        ({"algo__module": "os.path"}, "algo.module=os.path: no such module; known: "),
        ({"algo__module": "../types"}, "algo.module=../types: no such module; known: "),
        ({"algo__module": "__init__"}, "algo.module=__init__: no such module; known: "),
        ({"env__module": "native"}, "env.module=native: no such module; "),  # a helper, not a family
        ({"algo__module": 3}, "algo.module=3: no such module; "),
        ({"algo__outer__lr": float("inf")}, "algo.outer.lr=inf: must be a finite number"),
        ({"learner__gamma": float("nan")}, "learner.gamma=nan: must be a"),
    ],
)
def test_one_problem_one_line(changes, line):
    (problem,) = problems(changed(**changes))
    assert problem.startswith(line)
    assert "\n" not in problem


def test_what_is_wrong_is_not_known():
    """Of two keys that are not there neither is told as one that is."""
    for problem in problems(changed(algo__outer__zebra=1, algo__outer__quagga=2)):
        assert not {"algo.outer.zebra", "algo.outer.quagga"} & set(problem.partition("known: ")[2].split(", "))
        assert "algo.outer.lr" in problem


def test_all_problems_are_told_together():
    found = problems(changed(seed=-1, lr=3, algo__inner__steps="x", learner__gamma=2, env__horizon=0, hardware__device="gpu"))
    assert [p.split("=")[0] for p in found] == [
        "seed",
        "hardware.device",
        "lr",
        "algo.inner.steps",
        "learner.gamma",
        "env.horizon",
    ]


def test_a_choice_suggests_the_nearest():
    assert problems(changed(hardware__device="cuad"))[0].endswith("; did you mean cuda?")


@pytest.mark.parametrize("place", ["_target_", "algo___target_", "env__ranges___target_", "train___target_"])
def test_code_is_never_named_by_path(place):
    values = copy.deepcopy(TRAIN)
    *path, _ = place.replace("___target_", "__x").split("__")
    holder = values
    for part in path:
        holder = holder[part]
    holder["_target_"] = "os.system"
    dotted = ".".join([*path, "_target_"])
    assert f"{dotted}=os.system: refused; code is named by module, never by path" in problems(values)


def test_target_in_a_list_or_a_task_is_refused():
    assert any("refused" in p for p in problems({**TRAIN, "algo": {**TRAIN["algo"], "query": [{"_target_": "x"}]}}))
    values = {**compose_values("adapt", ["run=x"]), "task": {"_target_": 3.0}}
    assert problems(values, "adapt") == ["task._target_=3.0: refused; code is named by module, never by path"]


def test_whole_floats_are_integers_and_integers_are_numbers():
    values = changed(train__iterations=1e5, algo__tasks=1e2, algo__outer__lr=1, learner__network__hidden=[8.0, 8])
    config = validate("train", values)
    assert config.train.iterations == 100_000
    assert type(config.train.iterations) is int
    assert type(config.algo["tasks"]) is int
    assert type(config.algo["outer"]["lr"]) is float
    assert config.learner["network"]["hidden"] == [8, 8]
    assert values["train"]["iterations"] == 1e5, "the values given stay as they were"
    assert validate("train", changed(algo__outer__lr=1)) == validate("train", changed(algo__outer__lr=1.0))


def test_tasks_take_integers():
    config = validate("adapt", {**compose_values("adapt", ["run=x"]), "task": {"gravity": 20, "force_mag": -8}})
    assert config.task == {"gravity": 20.0, "force_mag": -8.0}


def test_validated_groups_are_plain_and_load_again():
    config = validate("train", TRAIN)
    assert set(flatten(config.algo)) == set(flatten(TRAIN["algo"])), "keys by the names they have in yaml (lambda)"
    assert config.model_dump() == validate("train", config.model_dump()).model_dump()
    for group in ("algo", "learner", "env"):
        module, loaded = load(group, getattr(config, group))
        assert isinstance(loaded, module.Config)


def test_load_tells_every_problem_of_a_group():
    with pytest.raises(ConfigError) as caught:
        load("learner", {**TRAIN["learner"], "gamma": 2, "foo": 1})
    assert len(caught.value.problems) == 2


def test_installed_packages_add_modules_but_do_not_replace(monkeypatch):
    class Config(StrictModel):
        size: int = Field(gt=0, description="how big")

    plugin = ModuleType("somebodys_algorithm")
    plugin.Config, plugin.Algo = Config, object
    monkeypatch.setitem(sys.modules, "somebodys_algorithm", plugin)
    points = [
        metadata.EntryPoint("theirs", "somebodys_algorithm", "metarl.algos"),
        metadata.EntryPoint("maml", "somebodys_algorithm", "metarl.algos"),
        metadata.EntryPoint("broken", "no_such_package_anywhere", "metarl.algos"),
    ]
    monkeypatch.setattr("metarl_cli.config.registry.entry_points", lambda group: [p for p in points if p.group == group])
    config = validate("train", {**TRAIN, "algo": {"module": "theirs", "size": 2}})
    assert config.algo == {"module": "theirs", "size": 2}
    assert load("algo", TRAIN["algo"])[0].__name__ == "metarl_cli.algos.maml"
    assert problems({**TRAIN, "algo": {"module": "theirs", "size": 0}}) == ["algo.size=0: must be an integer > 0 (how big)"]
    (broken,) = problems({**TRAIN, "algo": {"module": "broken"}})
    assert broken.startswith("algo.module=broken: cannot be imported: No module named 'no_such_package_anywhere'")


def test_a_learner_that_does_not_fit_the_family_is_a_problem(monkeypatch):
    class Picky:
        def __init__(self, config, spec):
            raise ValueError(f"cannot act with {spec.num_actions} actions")

    monkeypatch.setattr("metarl_cli.learners.dqn.Learner", Picky)
    assert problems(TRAIN) == ["learner: cannot act with 2 actions"]


def test_config_error_is_a_user_error_and_travels_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert isinstance(error, UserError)
    assert error.problems == ["a", "b"]
    assert str(error) == "a\nb"


def test_suggestions():
    keys = ["seed", "tasks_seed", "algo", "algo.inner.lr", "algo.outer.lr", "algo.outer.clip", "learner.gamma", "env.horizon"]
    assert closest("sed", keys) == ["seed"]
    assert closest("lr", keys) == ["algo.inner.lr", "algo.outer.lr"]
    assert closest("outer.lr", keys)[0] == "algo.outer.lr"
    assert closest("gama", keys) == ["learner.gamma"]
    assert closest("learner.gama", keys) == ["learner.gamma"]
    assert closest("algorithm", ["algo", "env"]) == []
    assert closest("x", []) == []
    assert did_you_mean("horizn", keys) == "; did you mean env.horizon?"
    assert did_you_mean("qqq", keys) == ""

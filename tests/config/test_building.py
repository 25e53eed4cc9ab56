"""Validation: every problem at once, each with its key, its value, what is allowed, and "did you mean"."""

import copy
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from types import ModuleType

import pytest
from conftest import CONF, compose_train, compose_values, options, tiny
from pydantic import Field, ValidationError

from metarl_cli.config import messages, models, registry
from metarl_cli.config.base import StrictModel, operational_keys, result_values
from metarl_cli.config.messages import closest, did_you_mean, flatten
from metarl_cli.config.models import Job
from metarl_cli.config.registry import ConfigError, load, validate
from metarl_cli.envs import gymnasium as simulated
from metarl_cli.errors import Problem, UserError
from metarl_cli.interfaces import Algorithm
from metarl_cli.learners import dqn
from metarl_cli.runs.build import build
from metarl_cli.runs.naming import default_name, default_path, group_hash

TRAIN = compose_values("train", [])
MINIGRID = compose_values("train", ["env=minigrid_crossing"])["env"]
BARE = {key: value for key, value in MINIGRID.items() if key != "module"}


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


def problems(values, model=models.TrainConfig, choices=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(model, values, choices)
    return [problem.text for problem in caught.value.problems]


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in ("algo", "learner", "env", "hardware") for o in options(g)])
def test_every_option_is_valid(group, option):
    pearl = ["algo=pearl", "env=pendulum_family"]
    needs = {"dqn_atari": ["env=atari_flavours"], "policy": ["algo=maml_pg"], "policy_log": ["algo=emaml_pg"]}
    needs = (needs | {"sac": pearl, "pearl": pearl}).get(option, [])
    try:
        config = compose_train(*needs, *([] if f"{group}={option}" in needs else [f"{group}={option}"]))
    except ConfigError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))
    algorithm = config.algo.module.Algo
    assert (config.learner is not None) == algorithm.uses_learner
    takes_steps = algorithm.adapts_by in ("gradient", "inference", "demonstrations")
    assert (config.eval.steps is not None) == (config.test.steps is not None) == takes_steps


def test_test_and_adapt_are_valid_once_the_run_is_named():
    for command, model in (("test", models.TestConfig), ("adapt", models.AdaptConfig)):
        config = validate(model, compose_values(command, ["run=somewhere"]))
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
            "hardware.device=cuad: must be one of auto, cpu, cuda, cuda:N (auto takes a GPU where ",
        ),
        ({"algo__module": "mamll"}, "algo.module=mamll: no such module; did you mean maml? known: "),
        ({"algo__module": ...}, "algo.module: missing; known: "),
        ({"algo__module": "os.path"}, "algo.module=os.path: no such module; known: "),
        ({"algo__module": "../types"}, "algo.module=../types: no such module; known: "),
        ({"algo__module": "__init__"}, "algo.module=__init__: no such module; known: "),
        ({"env__module": "native"}, "env.module=native: no such module; "),  # a helper, not a family
        ({"algo__module": 3}, "algo.module=3: no such module; "),
        ({"algo__outer__lr": float("inf")}, "algo.outer.lr=inf: must be a finite number"),
        ({"algo__outer__lr": 1e300}, "algo.outer.lr=1e+300: must be a finite number, at most 3.4e+38"),
        ({"learner__gamma": float("nan")}, "learner.gamma=nan: must be a"),
    ],
)
def test_one_problem_one_line(changes, line):
    (problem,) = problems(changed(**changes))
    assert problem.startswith(line)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("parameters", {"p": {"nominal": 1, "set": "attr.x"}}, "parameters.p.set=attr.x: must be a text that matches ^(seed|"),
        ("parameters", {"p": {"nominal": 1, "set": 3}}, "parameters.p.set=3: must be a text or a list of texts (where it goes"),
        ("parameters", {"p": {"nominal": 1, "set": ["seed", 4]}}, "parameters.p.set.1=4: must be a text"),
        (
            "parameters",
            {"p": {"nominal": None, "set": "seed"}},
            "parameters.p.nominal=null: must be true or false or an integer",
        ),
        ("choices", {"p": ["a", 1]}, "choices.p.0=a: must be true or false or an integer or a number or a text (the values"),
        ("id", "a:b:c", "id=a:b:c: must be a text that matches ^"),
    ],
)
def test_a_value_of_several_types_is_one_line_that_names_its_key(key, value, line):
    with pytest.raises(ValidationError) as error:
        simulated.Config.model_validate({**BARE, key: value})
    found = [problem.text for problem in messages.describe(simulated.Config, error.value.errors(), {})]
    assert found[0].startswith(line)
    assert len(found) <= 2, "each entry of a list of the wrong type has its own"


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
    assert problems(values, models.AdaptConfig) == ["task._target_=3.0: refused; code is named by module, never by path"]


def test_whole_floats_are_integers_and_integers_are_numbers():
    values = changed(train__iterations=1e5, algo__tasks=1e2, algo__outer__lr=1, learner__network__hidden=[8.0, 8])
    config = validate(models.TrainConfig, values)
    assert config.train.iterations == 100_000
    assert type(config.train.iterations) is int
    assert type(config.algo.config.tasks) is int
    assert type(config.algo.config.outer.lr) is float
    assert config.learner.config.network.hidden == [8, 8]
    assert values["train"]["iterations"] == 1e5, "the values given stay as they were"
    assert validate(models.TrainConfig, changed(algo__outer__lr=1)) == validate(
        models.TrainConfig, changed(algo__outer__lr=1.0)
    )


def test_tasks_take_integers_and_truth_values():
    task = {"gravity": 20, "force_mag": -8, "hard": True}
    config = validate(models.AdaptConfig, {**compose_values("adapt", ["run=x"]), "task": task})
    assert config.task == {"gravity": 20.0, "force_mag": -8.0, "hard": True}


def test_validated_groups_dump_as_plain_values_and_load_again():
    config = validate(models.TrainConfig, TRAIN)
    assert set(flatten(config.algo)) == set(flatten(TRAIN["algo"])), "keys by the names they have in yaml (lambda)"
    assert config.model_dump() == validate(models.TrainConfig, config.model_dump()).model_dump()
    assert config.model_dump(by_alias=True) == config.model_dump()
    for name in ("algo", "learner", "env"):
        group = getattr(config, name)
        assert isinstance(group.config, group.module.Config)
        assert load(name, group.values) == group
    again = pickle.loads(pickle.dumps(config))
    assert again == config, "what travels to another process"
    assert again.env.instance is None


def test_load_tells_every_problem_of_a_group():
    with pytest.raises(ConfigError) as caught:
        load("learner", {**TRAIN["learner"], "gamma": 2, "foo": 1})
    assert len(caught.value.problems) == 2


def test_installed_packages_add_modules_but_do_not_replace(monkeypatch):
    class Config(StrictModel):
        size: int = Field(gt=0, description="how big")

    plugin = ModuleType("somebodys_algorithm")
    plugin.Config, plugin.Algo = Config, type("Algo", (Algorithm,), {"adapts_by": "gradient"})
    monkeypatch.setitem(sys.modules, "somebodys_algorithm", plugin)
    points = [
        metadata.EntryPoint("theirs", "somebodys_algorithm", "metarl.algos"),
        metadata.EntryPoint("maml", "somebodys_algorithm", "metarl.algos"),
        metadata.EntryPoint("broken", "no_such_package_anywhere", "metarl.algos"),
    ]
    monkeypatch.setattr("metarl_cli.config.registry.entry_points", lambda group: [p for p in points if p.group == group])
    config = validate(models.TrainConfig, {**TRAIN, "algo": {"module": "theirs", "size": 2}})
    assert config.algo.values == {"module": "theirs", "size": 2}
    assert load("algo", TRAIN["algo"]).module.__name__ == "metarl_cli.algos.maml"
    assert problems({**TRAIN, "algo": {"module": "theirs", "size": 0}}) == ["algo.size=0: must be an integer > 0 (how big)"]
    (broken,) = problems({**TRAIN, "algo": {"module": "broken"}})
    assert broken.startswith("algo.module=broken: cannot be imported: No module named 'no_such_package_anywhere'")


def test_a_learner_that_does_not_fit_the_family_is_a_problem(monkeypatch):
    class Picky(dqn.Learner):
        def __init__(self, config, spec):
            raise ValueError(f"cannot act with {spec.actions.size} actions")

    monkeypatch.setattr("metarl_cli.learners.dqn.Learner", Picky)
    assert problems(TRAIN) == ["learner: cannot act with 2 actions"]


def test_config_error_is_a_user_error_and_travels_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError("a", Problem("key", "b"))))
    assert isinstance(error, UserError)
    assert error.problems == [Problem("", "a"), Problem("key", "b")]
    assert pickle.loads(pickle.dumps(UserError(exit_code=1))).exit_code == 1
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


# -- what the algorithm does not use


RL2 = compose_values("train", ["algo=rl2"])


@pytest.mark.parametrize(
    ("changes", "choices", "lines"),
    [
        ({"learner": {"gamma": 0.1}}, {"algo": "rl2"}, ["learner.gamma=0.1: algo=rl2 has no learner"]),
        ({"learner": TRAIN["learner"]}, {"algo": "rl2", "learner": "dqn"}, ["learner=dqn: algo=rl2 has no learner"]),
        ({"learner": {"gamma": 0.1}}, None, ["learner.gamma=0.1: algo.module=rl2 has no learner"]),
        (
            {"eval": {**RL2["eval"], "steps": 7}},
            {"algo": "rl2"},
            ["eval.steps=7: algo=rl2 adapts within trials of algo.episodes, not by gradient steps"],
        ),
    ],
)
def test_a_value_without_effect_is_refused(changes, choices, lines):
    assert problems({**RL2, **changes}, choices=choices) == lines


def test_what_the_algorithm_needs_is_asked_for():
    steps, missing = problems({**changed(test__steps=None), "learner": None}, choices={"algo": "maml_dqn"})
    assert missing == "learner: missing; algo=maml_dqn needs one, say learner=dqn"
    assert steps == "test.steps: missing; must be an integer > 0, as algo=maml_dqn adapts by gradient steps"


@pytest.mark.parametrize(("algo", "more"), [("es_dqn", ["env=classic_mix"]), ("rl2", [])])
def test_each_group_is_parsed_once_and_the_family_is_built_once(algo, more, monkeypatch):
    parsed = []
    parse = registry._parse
    monkeypatch.setattr(registry, "_parse", lambda model, *rest, **named: parsed.append(model) or parse(model, *rest, **named))
    words = [f"algo={algo}", *tiny(algo), *more]
    words = [word for word in words if not (more and word.startswith("env.horizon"))]
    module = registry.load("env", compose_values("train", words)["env"]).module
    family, families = module.Family, []
    monkeypatch.setattr(module, "Family", lambda *args: families.append(family(*args)) or families[-1])
    parsed.clear()
    config = compose_train(*words)
    components = build(config)
    names = [f"{model.__module__}.{model.__name__}" for model in parsed]
    assert components.family is families[0]
    assert len(families) == 1
    groups = Counter(name for name in names if not name.startswith("metarl_cli.envs"))
    assert set(groups.values()) == {1}, groups
    assert groups.keys() >= {"metarl_cli.config.models.TrainConfig", config.algo.module.__name__ + ".Config"}


def test_a_later_key_changes_no_name_while_it_has_its_default():
    assert "demonstrator" not in result_values(compose_train())
    one, two = (compose_train("algo=mandril", "env=sprite_grid", f"demonstrator={name}") for name in "ab")
    assert result_values(one)["demonstrator"] == "a"
    assert group_hash(one) != group_hash(two)


def test_only_what_can_change_a_result_is_in_the_name():
    config = compose_train()
    same = ["hardware=cpu", "train.log_every=7", "train.checkpoint_every=1", "run=here", "outputs=there", "hardware.threads=2"]
    assert default_name(compose_train(*same), Job({"algo": "a"}, same)) == default_name(config, Job({"algo": "a"}, []))
    assert operational_keys(config) == {
        "run",
        "aggregate",
        "outputs",
        "robust",
        "oracle",
        "hardware",
        "packages",
        "algo.outer.chunk",
        "train.log_every",
        "train.checkpoint_every",
    }
    for word in ("train.eval_every=7", "seed=1", "learner.gamma=0.5", "algo.inner.decay=0.5", "env.horizon=7"):
        assert result_values(compose_train(word)) != result_values(config), word
    chunked = compose_train("algo=es_dqn", "algo.chunk=2")
    assert result_values(chunked) == result_values(compose_train("algo=es_dqn"))
    assert "algo.chunk" in operational_keys(chunked)


@pytest.mark.parametrize(
    ("words", "middle"),
    [
        ([], ""),
        (["seed=3", "hardware=cpu", "outputs=here", "train.log_every=9", "algo=maml_dqn"], ""),
        (["algo.outer.lr=0.002"], "outer.lr_0.002-"),
        (["train.iterations=9", "++algo.outer.lr=2e-3"], "outer.lr_2e-3-train.iterations_9-"),
        (["learner.network.hidden=[8, 8]"], "learner.network.hidden_8_8-"),
        (["eval.tasks=5"] * 2, "eval.tasks_5-"),
        (["eval.episodes=9", "env.horizon=9"], "env.horizon_9-eval.episodes_9-"),
        (
            ["algo.inner.support.rollouts=12", "learner.gamma=0.1", "train.iterations=9"],
            "inner.support.rollouts_12-learner.gamma_0.1-",
        ),
    ],
)
def test_a_name_tells_what_was_overridden(words, middle):
    config = compose_train(*[word.lstrip("+") for word in words])
    name = default_name(config, Job({"algo": "maml_dqn", "env": "cartpole_family"}, words))
    assert re.fullmatch(rf"maml_dqn-cartpole_family-{re.escape(middle)}seed{config.seed}-[0-9a-f]{{8}}", name), name


def test_the_same_values_are_the_same_run(tmp_path):
    """However they were written; another algorithm of the same values is another run."""
    config, job = compose_train(f"outputs={tmp_path}"), Job({"algo": "a", "env": "e"}, [])
    written = job._replace(overrides=["train.iterations=200"])
    path = default_path(config, job)
    assert default_path(config, written) != path
    path.mkdir()
    assert default_path(config, written) != path, "no run yet"
    (path / "run.json").touch()
    assert default_path(config, written) == path
    assert default_path(config, written._replace(choices={"algo": "b", "env": "e"})) != path
    assert default_path(compose_train(f"outputs={tmp_path}", "seed=1"), job) != path


def test_the_processes_of_a_simulator_are_not_in_the_name():
    one, two = (registry.load("env", {**MINIGRID, "processes": n}).config for n in (1, 2))
    assert result_values(one) == result_values(two)


def test_importing_and_building_have_no_effects(tmp_path):
    """Threads, signal handlers and process groups stay as they are, in a process of its own."""
    code = """if True:
        import importlib, pkgutil, signal, threading
        import torch
        torch.set_num_threads(3)
        def state():
            handlers = {s: signal.getsignal(s) for s in signal.Signals}
            return torch.get_num_threads(), handlers, threading.active_count(), torch.distributed.is_initialized()
        before = state()
        import metarl_cli
        for info in pkgutil.walk_packages(metarl_cli.__path__, "metarl_cli."):
            if not info.name.endswith("__main__"):
                importlib.import_module(info.name)
        assert state() == before, "importing"
        import hydra.core.plugins, metarl_cli.cli.compose as compose
        plugins = hydra.core.plugins.Plugins.instance().discover(compose.SearchPathPlugin)
        assert compose.InstalledConfigurations not in plugins
        from metarl_cli.config.models import TrainConfig
        from metarl_cli.config.registry import validate
        from metarl_cli.runs.build import build
        for algo in ("maml_dqn", "evo_dqn", "rl2"):
            composed = compose.Composer("train", None).compose([f"algo={algo}", "hardware.threads=1"])
            values = compose.plain(composed)
            del values["hydra"]
            build(validate(TrainConfig, values))
        assert state() == before, "building"
    """
    env = {**os.environ, "PYTHONPATH": str(CONF.parent), "WORLD_SIZE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

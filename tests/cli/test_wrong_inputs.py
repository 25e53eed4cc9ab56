"""Wrong inputs of the command line: each is answered by one short line for each thing that is wrong, and exit code 2."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest
from conftest import options

from metarl_cli.cli import adapt, test, train
from metarl_cli.cli import main as cli
from metarl_cli.runs.folder import RunFolder

MOST = 3  # lines of an answer, unless there are more things that are wrong
LONGEST = 1500  # [characters] of a line: the longest names all experiments

# What is typed -> what its answer says. "RUN" is a finished run, "CONF" a folder of somebody's configurations.
WRONG = {
    # commands and flags
    "trian": "did you mean train?",
    "version": "no such command",
    "--hlep": "no such command",
    "seed=1 train": "the command comes first",
    "algos maml": "no such option of algo; did you mean maml_dqn",
    "envs nope": "no such option of env",
    "envs --cfg job": "takes names, packages=[...], --config-dir and --help alone",
    "train --confg-dir CONF": "did you mean --config-dir?",
    "train --config-dir nowhere": "no such folder",
    "train --config-dir": "expected one argument",
    "train --multirn": "did you mean --multirun?",
    "train --cfg nothing": "invalid choice",
    "train --experimental-rerun job.pickle": "runs pickled code",
    "train --config-name test": "the command chooses it",
    "train --config-path CONF": "add your own with --config-dir",
    "train --resolve": "goes with --cfg or --help",
    "train --cfg job -m": "use only one of",
    # keys
    "train sed=1": "did you mean seed?",
    "train aglo=maml_dqn": "did you mean algo?",
    "train algo.inner.stepz=3": "did you mean algo.inner.steps?",
    "train lr=3": "did you mean algo.inner.lr or algo.outer.lr?",
    "train foo=1": "no such key; known",
    "train +foo=1": "no such key",
    "train ++algo.foo=1": "no such key",
    "train foo": "write key=value",
    "train =3": "write key=value|cannot be read",
    "train algo.=3": "cannot be read",
    "train ~seed": "seed: missing",
    "train ~env": "env",
    "train env.ranges.gravty=[1,2]": "gravity",
    "test run=RUN algo=rl2": "a saved run brings its own",
    "test run=RUN env.horizon=2": "a saved run brings its own",
    "adapt run=RUN env=cartpole_v1": "a saved run brings its own",
    "adapt run=RUN gravity=20": "did you mean task.gravity=20?",
    "adapt run=RUN epsodes=3": "did you mean episodes?",
    # options
    "train algo=mamldqn": "did you mean maml_dqn?",
    "train algo=null": "algo=null: ",
    "train algo=": "no such option",
    "train env=cartpole": "did you mean cartpole_family or cartpole_physics or cartpole_v1?",
    "train env=qqq": "no such option; known",
    "train env=../conf/env/bandit": "no such option",
    "train experiment=nope": "no such option; known",
    "train hardware=gpu": "did you mean cuda?",
    "train learner=dpn": "did you mean dqn",
    "train algo/search=snes": "algo=learned_loss_dqn has no search",
    "train algo=evo_dqn algo/search=snse": "did you mean snes?",
    "train algo.module=reptile": "no such module",
    "train algo.module=os.path": "no such module",
    "train env.module=null": "module",
    "train algo._target_=os.system": "_target_",
    "train hydra/launcher=qqq": "no such option; known",
    # values
    "train train.iterations=ten": "must be an integer > 0 (meta-iterations)",
    "train train.iterations=-5": "must be an integer > 0",
    "train train.iterations=0": "must be an integer > 0",
    "train train.iterations=1.5": "must be an integer > 0",
    "train train.iterations=null": "must be an integer > 0",
    "train train.iterations=[1]": "must be an integer > 0",
    "train 'train.iterations={a: 1}'": "must be an integer > 0",
    "train train=3": "must be a group",
    "train algo.inner.lr=nan": "must be a finite number",
    "train algo.inner.lr=inf": "must be a finite number",
    "train algo.outer.lr=-1": "must be a number > 0",
    "train seed=-1": "must be an integer >= 0",
    "train seed=abc": "must be an integer >= 0",
    "train seed=true": "must be an integer >= 0",
    "train seed=": "must be an integer >= 0",
    "train learner.gamma=1.5": "must be a number >= 0 and < 1",
    "train learner.network.hidden=64": "must be a list of 1 or more integers > 0",
    "train learner.network.hidden=[]": "must be a list of 1 or more integers > 0",
    "train learner.network.hidden=[64,x]": "integer",
    "train hardware.device=tpu": "one of auto, cpu, cuda, cuda:N",
    "train hardware.threads=0": "must be an integer > 0",
    "train hardware.compile=maybe": "true or false",
    "train env.horizon=0": "must be an integer > 0",
    "train env.ranges.gravity=[20,5]": "low <= high",
    "train env.ranges.gravity=[1]": "2 numbers",
    "train env.ranges.gravity=9.8": "2 numbers",
    "train env.ranges.masscart=[-1,1]": "masscart must be above 0|must contain",
    "train env=bandit env.arms=0": "must be an integer > ",
    "train run=${nowhere}": "nowhere",
    "train outputs=${oc.env:NOT_SET_ANYWHERE}": "NOT_SET_ANYWHERE",
    # what does not fit together
    "train algo.outer.tasks=201": "must not be above tasks (200)",
    "train algo=gittins env=cartpole_family": "algo.module=bandit_strategies: this algorithm is for bandits",
    "train algo=oracle env=cartpole_family": "env=tabular_mdp",
    "train algo=pearl env=cartpole_family": "learner: a squashed Gaussian needs actions that are vectors; algo=pearl_dqn",
    "train algo=maml_dqn env=pendulum_family learner=sac": "algo=maml_dqn gives no noise to draw actions with",
    "train algo=rl2 learner.gamma=0.1": "has no learner",
    "train algo=rl2 learner=dqn_atari": "has no learner",
    "train algo=rl2 eval.steps=7": "not by gradient steps",
    "train algo=dqn eval.steps=null": "missing|must be",
    "train algo=robust_dqn eval.steps=7": "algo=robust_dqn does not adapt",
    "train algo=osi_dqn test.steps=null": "algo=osi_dqn adapts by supports",
    "train algo=ucb1 env=bandit train.iterations=50": "has nothing to train",
    "train algo=dqn learner=dqn_atari": "convolutions need images",
    "train env=gridworld env.clear=99": "no cell is left",
    "train env=base/gymnasium": "env.id: missing",
    # sweeps and quoting
    "train seed=0,1": "add -m to try each",
    "train -m seed=0,x": "seed=x: must be an integer",
    "train -m seed=range(3": "cannot be read",
    "train -m algo=maml_dqn,mamldqn": "did you mean maml_dqn?",
    "train seed=[1": "cannot be read",
    "train seed=\\'1": "cannot be read",
    "train 'seed=a b: c'": "must be an integer",
    # configurations of somebody's own
    "train --config-dir CONF env=syntax": "line 2",
    "train --config-dir CONF env=tabs": "line ",
    "train --config-dir CONF env=nothing": "env.module: missing",
    "train --config-dir CONF env=list": "env=[1, 2]: must be a group",
    "train --config-dir CONF env=lonely": "nobody",
    "train --config-dir CONF env=circle": "nested too deeply, or in itself",
    "train --config-dir CONF env=bare": "constructor: missing",
    "train --config-dir CONF env=unknown": "no such Gymnasium environment: CartPol-v1; did you mean",
    "train --config-dir CONF env=attribute": "has no attribute lenght; did you mean length?",
    "train --config-dir CONF experiment=typo": "did you mean seed?",
    # saved runs
    "test": "run: missing",
    "adapt": "run: missing",
    "test run=nothing": "not a run folder",
    "adapt run=nothing task.gravity=5": "not a run folder",
    "test run=RUN split=valid": "validation",
    "test run=RUN steps=-1": "must be an integer > 0",
    "test run=RUN tasks=0": "must be an integer > 0",
    "test run=RUN robust=": "robust",
    "test run=RUN checkpoint=first": "best, last",
    "adapt run=RUN task.gravity=[1,2]": "must be a number",
    "adapt run=RUN task.gravity=nan": "finite number",
    "adapt run=RUN task=heavy": "group of names and values",
    "adapt run=RUN gif=maybe": "true or false",
    "adapt run=RUN episodes=0": "must be an integer > 0",
}
MANY = {  # what is wrong in several ways: a line each
    "train --config-dir CONF env=bare": 8,
    "train ~env": 7,
    "train env=base/gymnasium": 3,
}
FILES = {
    "env/syntax": "module: gymnasium\n  id: CartPole-v1\n",
    "env/tabs": "module: gymnasium\n\tid: CartPole-v1\n",
    "env/nothing": "",
    "env/list": "- 1\n- 2\n",
    "env/lonely": "defaults: [nobody]\n",
    "env/circle": "defaults: [circle]\n",
    "env/bare": "module: gymnasium\nid: CartPole-v1\nhorizon: 20\nparameters: {l: {nominal: 0.5, set: attribute.length}}\n",
    "env/unknown": (
        "defaults: [base/gymnasium@_here_]\nid: CartPol-v1\nhorizon: 20\n"
        "parameters: {l: {nominal: 0.5, set: attribute.length}}\nranges: {l: [0.4, 0.6]}\n"
    ),
    "env/attribute": (
        "defaults: [base/gymnasium@_here_]\nid: CartPole-v1\nhorizon: 20\n"
        "parameters: {l: {nominal: 0.5, set: attribute.lenght}}\nranges: {l: [0.4, 0.6]}\n"
    ),
    "experiment/typo": "# @package _global_\nsed: 7\n",
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with configurations of somebody's own; no command gets to run."""
    for name, text in FILES.items():
        path = tmp_path / "CONF" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ("METARL_CONFIG_DIR", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(RunFolder, "lock", lambda *_: pytest.fail("it began to train"))
    handlers, level = list(logging.root.handlers), logging.root.level
    yield tmp_path
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_input_is_answered_in_a_line(typed, place, capsys):
    assert cli.main(shlex.split(typed)) == 2
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert 1 <= len(lines) <= MANY.get(typed, MOST), err
    for line in lines:
        assert line.startswith("metarl: error: "), "no traceback, and nothing else"
        assert len(line) <= LONGEST
        assert "Traceback" not in line
    assert any(part in err for part in WRONG[typed].split("|")), err
    assert {path.name for path in place.iterdir()} == {"CONF"}, "nothing on disk"


def test_there_are_as_many_as_were_counted():
    assert len(WRONG) >= 85
    assert {module.__name__.rpartition(".")[2] for module in (train, test, adapt)} <= {typed.split()[0] for typed in WRONG}
    assert "maml_dqn" in options("algo")

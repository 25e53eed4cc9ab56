"""A package of its own adds an algorithm, a learner, a family, a search, a metric and a command, and touches nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import metarl_cli as metarl
from metarl_cli.cli import main as cli
from metarl_cli.cli.commands import commands
from metarl_cli.errors import UserError

FILES = {
    "metarl_plug/__init__.py": "",
    # -- a family: its physics and its tasks
    "metarl_plug/lever.py": '''
"""Two levers: one pays, the other costs; which one is the task."""
import torch
from PIL import Image

from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.spaces import Discrete, Spec


class Config(NativeConfig):
    """Horizon and the range of the payment."""


class Lever(NativeFamily):
    """Find the lever that pays."""

    parameters = {"payment": 1.0}

    def __init__(self, config, device="cpu"):
        super().__init__(config, device)
        self.spec = Spec(obs_shape=(1,), actions=Discrete(2), horizon=config.horizon)

    def initial_state(self, shape, like, rng):
        return torch.ones(*shape, 1, dtype=like.dtype, device=like.device)

    def dynamics(self, state, action, task, rng):
        reward = torch.where(action == 1, task["payment"], -task["payment"])
        return state, reward, torch.zeros_like(action, dtype=torch.bool)

    def render(self, obs, task):
        return Image.new("RGB", (8, 8), "white")


Family = Lever
''',
    "metarl_plug/conf/env/levers.yaml": (
        "# Two levers, of which one pays.\nmodule: lever\nhorizon: 5\nranges: {payment: [-1.0, 1.0]}\nood_ranges: {}\n"
    ),
    # -- a learner without Q-learning's words: REINFORCE
    "metarl_plug/reinforce.py": '''
"""REINFORCE (Williams 1992): policy gradients with the mean return as baseline."""
import torch
from pydantic import Field

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.returns import lambda_returns
from metarl_cli.interfaces import Batch
from metarl_cli.interfaces import Learner as Base
from metarl_cli.networks.distributions import Categorical
from metarl_cli.networks.q_network import NetworkConfig, QNetwork


class Config(StrictModel):
    """The network and the discount."""

    network: NetworkConfig
    gamma: float = Field(ge=0, le=1, description="discount per step")


class Reinforce(Base):
    """A policy-gradient learner for one task."""

    stochastic = True
    off_policy = False

    def __init__(self, config, spec):
        self.config, self.spec, self.actions = config, spec, spec.actions
        self.network = QNetwork(config.network, spec.obs_shape, (spec.actions.size,))

    def init(self, rng):
        return self.network.init(rng)

    def policy(self, params, obs):
        return Categorical(self.network(params, obs))

    def prepare(self, params, slow, batch, gamma=None, lambda_=0.0):
        gamma = self.config.gamma if gamma is None else gamma
        zeros = torch.zeros_like(batch.reward)
        returns = lambda_returns(batch.reward, zeros, batch.terminated, batch.ended, gamma, 1.0)
        baseline = (returns * batch.weight).sum() / batch.weight.sum()
        return Batch(batch, {"advantage": returns - baseline})

    def loss(self, params, batch):
        experience = batch.experience
        log_prob = self.policy(params, experience.obs).log_prob(experience.action)
        return -(log_prob * batch.signal["advantage"] * experience.weight).sum() / experience.weight.sum()


Learner = Reinforce
''',
    "metarl_plug/conf/learner/reinforce.yaml": (
        "# REINFORCE.\nmodule: reinforce\ngamma: 0.9\n"
        "network: {convolutions: [], hidden: [8], activation: tanh, layer_norm: false, dueling: false, context: 0}\n"
    ),
    # -- an algorithm, with a metric of its own: first-order MAML on the policy gradient
    "metarl_plug/first_order.py": '''
"""First-order MAML, on policy (Finn 2017, arXiv:1703.03400)."""
import torch
from pydantic import Field

from metarl_cli.adaptation.gradient import (
    NetworkPolicy, SupportConfig, adapt, adapted_names, collect_support, inner_step, support_gradients
)
from metarl_cli.config.base import StrictModel
from metarl_cli.experience.returns import ReturnsConfig
from metarl_cli.interfaces import Algorithm, num_tasks
from metarl_cli.networks.stacked import detached, expand, load_params
from metarl_cli.seeding import Streams, numpy_rng


class Config(StrictModel):
    """How tasks are adapted to."""

    tasks: int = Field(gt=0, description="training tasks")
    lr: float = Field(gt=0, description="inner learning rate")
    outer_lr: float = Field(gt=0, description="Adam's learning rate")
    returns: ReturnsConfig
    support: SupportConfig


class FirstOrder(Algorithm):
    """An initialisation, moved along the gradients after one step."""

    adapts_by = "gradient"
    saved = ("optimizer", "rng")

    def __init__(self, config, context):
        self.config, self.learner, self.family = config, context.learner, context.family
        self.rng = Streams(context.seed, "init", "support", device=context.device)
        self.task = self.family.sample_tasks(config.tasks, "train", numpy_rng(context.seed, "tasks", "train"))
        self.params = {name: value.requires_grad_() for name, value in self.learner.init(self.rng["init"]).items()}
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=config.outer_lr)
        self.iteration = self.env_steps = 0

    def rates(self):
        return {name: torch.tensor(self.config.lr) for name in adapted_names(self.params, "all")}

    @torch.no_grad()
    def train_step(self):
        params, config = expand(detached(self.params), self.config.tasks), self.config
        for step in range(2):
            support = collect_support(self.learner, params, self.family, self.task, config.support, self.rng["support"])
            self.env_steps += int(support.weight.sum())
            if step == 0:
                params = inner_step(self.learner, params, self.rates(), support, config.returns)
        gradients = support_gradients(self.learner, params, list(params), support, config.returns)
        for name, weight in self.params.items():
            weight.grad = gradients[name].mean(0)
        self.optimizer.step()
        self.iteration += 1
        return {"train/reward_after_one_step": float((support.reward * support.weight).sum() / support.weight.sum())}

    def adapt(self, task, budget, rng, family=None):
        params, config = expand(detached(self.params), num_tasks(task)), self.config
        place = family or self.family
        return adapt(self.learner, params, lambda step: self.rates(), place, task, budget, config.support, config.returns, rng)

    def load_policy(self, state, task):
        return NetworkPolicy(self.learner, state["params"])

    def weights(self):
        return {"params": detached(self.params)}

    def load_weights(self, state):
        load_params(self.params, state["params"])


Algo = FirstOrder
''',
    "metarl_plug/conf/algo/first_order.yaml": (
        "# First-order MAML on the policy gradient.\nmodule: first_order\ntasks: 16\nlr: 5.0\nouter_lr: 0.01\n"
        "returns: {gamma: null, lambda: 0.0}\n"
        "support: {rollouts: 8, steps: 5, epsilon: 0.0, repeat: 1, fresh: true}\n"
    ),
    # -- a search of evolution
    "metarl_plug/hill.py": '''
"""Hill climbing: the best so far, and one generation of neighbours."""
import torch
from pydantic import Field

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Search as Base


class Config(StrictModel):
    """Size and number of the steps."""

    population: int = Field(ge=2, description="genomes of a generation")
    sigma: float = Field(gt=0, description="deviation of a neighbour, in units of each gene's scale")


class Hill(Base):
    """Climb."""

    def __init__(self, config, start, scale, rng):
        self.config, self.top, self.scale, self.rng = config, start, scale, rng
        self.draw()

    def draw(self):
        noise = torch.randn(self.config.population, len(self.top), generator=self.rng)
        noise[0] = 0
        self.genomes = self.top + self.config.sigma * self.scale * noise

    def ask(self):
        return self.genomes

    def tell(self, fitness):
        self.top = self.genomes[torch.nan_to_num(fitness, nan=-torch.inf).argmax()]
        self.draw()
        return {"search/step": float(self.config.sigma)}

    def best(self):
        return self.top

    def state_dict(self):
        return {"top": self.top, "genomes": self.genomes, "rng": self.rng.get_state()}

    def load_state_dict(self, state):
        self.top, self.genomes = state["top"], state["genomes"]
        self.rng.set_state(state["rng"])


Search = Hill
''',
    "metarl_plug/conf/algo/search/hill.yaml": "# Hill climbing.\nmodule: hill\npopulation: 6\nsigma: 0.5\n",
    # -- a command
    "metarl_plug/count.py": '''
"""``metarl count``: count the words it is given."""


def run(words):
    """Print how many words there are."""
    print(len(words))
    return 0
''',
    "metarl_plug-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: metarl-plug\nVersion: 1.0\n",
    "metarl_plug-1.0.dist-info/entry_points.txt": """
[metarl.algos]
first_order = metarl_plug.first_order
[metarl.learners]
reinforce = metarl_plug.reinforce
[metarl.envs]
lever = metarl_plug.lever
[metarl.searches]
hill = metarl_plug.hill
[metarl.commands]
count = metarl_plug.count
[metarl.conf]
plug = metarl_plug.conf
""",
}
SMALL = ["eval.tasks=8", "eval.episodes=2", "test.tasks=8", "test.episodes=4", "test.steps=1", "hardware=cpu"]


@pytest.fixture
def plug(tmp_path, monkeypatch):
    """The package, installed; returns a folder for its runs."""
    for name, text in FILES.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    commands.cache_clear()
    yield tmp_path / "outputs"
    commands.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "metarl_plug"]:
        del sys.modules[name]


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_algorithm_a_learner_a_family_and_a_metric_learn_to_adapt(plug, capsys):
    """One policy-gradient step on the support finds the lever that pays: on held-out tasks, and by every command."""
    chosen = ["algo=first_order", "learner=reinforce", "env=levers", "train.iterations=30", "train.eval_every=10"]
    run = metarl.train(*chosen, *SMALL, f"outputs={plug}")
    assert any("train/reward_after_one_step" in row for row in metrics(run.path)), "the metric is logged"
    before, after = (np.mean(returns) for returns in run.test(tasks=64)["adapted"]["task_returns"])
    assert abs(before) < 1, "without adaptation one lever is pulled, which pays as often as it costs"
    assert after > 2, "the better lever pays 2.5 on average"
    assert cli.main(["test", f"run={run.path}", "split=validation", "tasks=4"]) == 0
    assert cli.main(["adapt", f"run={run.path}", "task.payment=-1", "steps=1"]) == 0
    assert run.adapt(payment=1.0, steps=1)([1.0]) == 1
    assert run.adapt(payment=-1.0, steps=1)([1.0]) == 0
    assert metarl.load(run.path / "adapted" / "payment=-1")([1.0]) == 0
    assert cli.main(["algos", "first_order"]) == cli.main(["envs", "levers"]) == 0
    assert "inner learning rate" in capsys.readouterr().out


def test_the_learner_and_the_family_fit_the_algorithms_there_are(plug):
    """Evolution adapts REINFORCE by gradient steps on its own episodes; MAML over replayed transitions refuses it."""
    small = ["algo.tasks=8", "algo.fitness.tasks=8", "algo.search.population=16", "algo.validation.candidates=0"]
    own = ["algo.lifetime.lr=5.0", "algo.lifetime.support.epsilon=0.0", "algo.lifetime.support.steps=5"]
    chosen = ["learner=reinforce", "env=levers", "train.iterations=8", "train.eval_every=8"]
    run = metarl.train("algo=es_dqn", *chosen, *small, *own, *SMALL, f"outputs={plug}")
    before, after = (np.mean(returns) for returns in run.test(tasks=64)["adapted"]["task_returns"])
    assert after > before + 1
    with pytest.raises(UserError, match="replays single transitions"):
        metarl.train("algo=maml_dqn", *chosen, *SMALL, f"outputs={plug}")


def test_a_search_moves_an_evolution(plug):
    small = ["algo.tasks=4", "algo.fitness.tasks=2", "algo.fitness.episodes=1", "algo.validation.candidates=0"]
    chosen = ["algo=evo_dqn", "algo/search=hill", "env=levers", "learner.network.hidden=[8]", "train.iterations=3"]
    run = metarl.train(*chosen, *small, *SMALL, "train.eval_every=3", f"outputs={plug}")
    assert any(row.get("search/step") == 0.5 for row in metrics(run.path))


def test_a_command_is_listed_and_runs(plug, capsys):
    assert cli.main(["count", "one", "two"]) == 0
    assert capsys.readouterr().out == "2\n"
    assert cli.main(["--help"]) == 0
    assert "count     count the words it is given" in capsys.readouterr().out

"""EvoTorch's SNES on the shared CartPoles: two ways.

*tensor*: its SNES, population and policy. All episodes are one tensor, and individuals whose episodes are over are left out, as
metarl does: its best case. *gymnasium*: its VecGymNE, a Gymnasium environment for each individual, as its documentation shows.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from typing import Any

import cartpole
import gymnasium
import torch
from evotorch import Problem
from evotorch.algorithms import SNES
from evotorch.neuroevolution import VecGymNE
from evotorch.neuroevolution.net.vecrl import Policy, SyncVectorEnv
from evotorch.tools import set_default_logger_config
from serving import Contender, serve
from torch import Tensor, nn


def network() -> nn.Sequential:
    layers = [nn.Linear(*sizes) for sizes in itertools.pairwise(cartpole.SIZES)]
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])


class Episodes:
    """The fitness of policies: the mean return of one episode on each task, all as one tensor."""

    def __init__(self, number: int):
        self.rng, self.steps = torch.Generator().manual_seed(number), 0
        self.task = {name: torch.tensor(values) for name, values in cartpole.PHYSICS.items()}
        self.policy = Policy(network())

    @torch.no_grad()
    def __call__(self, genomes: Tensor) -> Tensor:
        genomes = genomes.as_subclass(torch.Tensor)  # it hands out a slower subclass
        self.policy.set_parameters(genomes)
        alive, returns = torch.arange(len(genomes)), torch.zeros(len(genomes), cartpole.TASKS)
        first = torch.rand(4, cartpole.TASKS, generator=self.rng) * 0.1 - 0.05  # the same for every individual
        state = tuple(first[:, None].expand(-1, len(genomes), -1))
        total, running = returns.clone(), torch.ones_like(returns, dtype=torch.bool)  # of those alive
        for _ in range(cartpole.HORIZON):
            total += running
            action = self.policy(torch.stack(state, -1)).argmax(-1)
            state, ended = cartpole.step(torch, state, action, self.task)
            running = running & ~ended
            left = running.any(1)
            num = int(left.sum())
            if num == 0:
                break
            if 2 * num <= len(alive):
                returns[alive] = total
                alive, total, running = alive[left], total[left], running[left]
                state = tuple(column[left] for column in state)
                self.policy.set_parameters(genomes[alive])
        returns[alive] = total
        self.steps += int(returns.sum())  # a reward of 1 for each step
        return returns.mean(1)


class Tasks(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole-v1 whose physics are those of one task after another."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        rows = zip(*cartpole.PHYSICS.values(), strict=True)
        self.tasks = itertools.cycle([dict(zip(cartpole.PHYSICS, row, strict=True)) for row in rows])

    def reset(self, **options: Any) -> Any:
        physics, env = next(self.tasks), self.unwrapped
        derived = {
            "total_mass": physics["masspole"] + physics["masscart"],
            "polemass_length": physics["masspole"] * physics["length"],
        }
        for name, value in {**physics, **derived}.items():
            setattr(env, name, value)
        return super().reset(**options)


def build(options: dict[str, Any]) -> Contender:
    population, kind = options["population"], options["kind"]
    searcher: Any = None
    spent: Any = None
    before = 0

    def copies(num_envs: int) -> SyncVectorEnv:  # as VecGymNE makes them of a name
        return SyncVectorEnv([Tasks] * num_envs, empty_info=True, num_episodes=cartpole.TASKS)

    def start(number: int) -> None:
        nonlocal searcher, spent, before
        mean, deviations = (torch.as_tensor(x) for x in cartpole.start(number))
        if kind == "tensor":
            episodes = Episodes(number)
            problem = Problem("max", episodes, solution_length=len(mean), vectorized=True, dtype=torch.float32)
            spent = lambda: episodes.steps  # noqa: E731
        else:
            problem = VecGymNE(copies, network, num_episodes=cartpole.TASKS)
            spent = lambda: problem.interaction_count  # noqa: E731
        problem.manual_seed(number)
        searcher = SNES(problem, popsize=population, center_init=mean, stdev_init=deviations)
        searcher.step()
        before = spent()

    def run(count: int) -> float:
        for _ in range(count):
            searcher.step()
        return float(count * population * cartpole.TASKS)

    return Contender(run, start, extras=lambda: {"env_steps": spent() - before})


warnings.filterwarnings("ignore", module="gymnasium")
set_default_logger_config(logger_level=logging.WARNING, override=True)
torch.set_num_threads(1)
serve(build, ["evotorch", "gymnasium", "torch"])

"""The one evaluator: adaptation curves of any algorithm on tasks it never trained on; and ``metarl test``.

A curve is the return of full greedy episodes before adaptation and after each adaptation step, per task, against the
gradient steps and environment steps spent (Beck 2023, arXiv:2301.08028, section 2.3). For an algorithm that adapts within a
trial it is the return of each of the trial's episodes; where such a policy is stochastic, its actions sampled instead of greedy
make a second curve, in the same environments. Evaluation owns its environments and random streams: how often and on how many
tasks it runs moves nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from metarl_cli.evaluation.curves import Curve, Report, Total
from metarl_cli.evaluation.statistics import Interval, Scores, iqm_interval, mean_interval, together
from metarl_cli.experience.rollout import Act, run_episodes
from metarl_cli.interfaces import Adaptation, Algorithm, Family, GradientAlgorithm, Task, TrialAlgorithm
from metarl_cli.progress import counted
from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import random_actions


@torch.no_grad()
def trial(
    family: Family,
    task: Task,
    algorithm: TrialAlgorithm,
    trials: int,
    env_rng: torch.Generator,
    rng: torch.Generator,
    greedy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Whole trials of ``algorithm.episodes`` episodes: ``trials`` of them on each of M tasks, memory kept throughout.

    Greedy or sampled, the environments draw the same numbers from ``env_rng``; the algorithm's chance comes from ``rng``.
    Returns the undiscounted return and the length [steps] of every episode, ``[episodes, M, trials]`` both.
    """
    env = family.make(task, trials, env_rng)
    memory = algorithm.begin(task, trials, rng, greedy)
    episodes, shape, device = algorithm.episodes, env.obs.shape[:2], env.obs.device
    returns, lengths = torch.zeros(2, episodes + 1, *shape, device=device)  # the last row takes what follows a trial's end
    current = torch.zeros(1, *shape, dtype=torch.long, device=device)
    most = episodes * family.spec.horizon
    for _ in counted(range(most), most, "step of the trials"):
        obs = env.obs
        action, memory = algorithm.choose(memory, obs)
        step = env.step(action)
        memory = algorithm.observe(memory, obs, action, step)
        returns.scatter_add_(0, current, step.reward[None])
        lengths.scatter_add_(0, current, torch.ones_like(step.reward[None]))
        current = (current + (step.terminated | step.truncated)).clamp(max=episodes)
        if (current == episodes).all():
            break
    return returns[:-1], lengths[:-1]


Aggregate = Callable[[Scores], Interval]  # returns [E, M] -> what is reported of them


def iqm_over_tasks(scores: Scores) -> Interval:
    """IQM over tasks and repeats, with its interval over both."""
    return iqm_interval(scores, over_tasks=True)


def mean_over_tasks(scores: Scores) -> Interval:
    """Mean over tasks and repeats, with its interval over tasks; of a single task over its repeats."""
    return mean_interval(scores if scores.shape[1] > 1 else scores.T)


class Evaluator:
    """Measures on a fixed set of tasks.

    Args:
        family: where the tasks live.
        task: the held-out tasks.
        episodes: full episodes per task and adaptation step; trials per task, for an algorithm that adapts within them.
        seed: of the support and evaluation episodes, with the split: a stream of their own for each.
        split: the tasks' split.
    """

    def __init__(self, family: Family, task: Task, episodes: int, seed: int, split: str):
        self.family, self.task, self.episodes, self.seed, self.split = family, task, episodes, seed, split
        self.device = next(iter(task.values())).device
        self.groups = {name: rows.cpu().numpy() for name, rows in family.groups(task).items() if len(rows)}

    def _rng(self, name: str) -> torch.Generator:
        return torch_rng(self.seed, self.split, name, device=self.device)

    def _returns(self, task: Task, act: Act) -> Scores:
        rng = self._rng("episodes")  # the same episodes for every policy
        return run_episodes(self.family, task, act, self.episodes, rng)[0].T.double().cpu().numpy()  # [E, M]

    def _adaptation(
        self, algorithm: GradientAlgorithm, adaptations: Iterator[Adaptation], most: int, what: str = "adaptation, point"
    ) -> Curve:
        steps, returns, gradient_steps, env_steps = [], [], [], []
        for adaptation in counted(adaptations, most + 1, what):
            params = adaptation.params
            steps.append(adaptation.step)
            returns.append(self._returns(self.task, lambda obs, params=params: algorithm.act(params, obs)))  # type: ignore[misc]
            gradient_steps.append(adaptation.gradient_steps)
            env_steps.append(adaptation.env_steps)
        return self._points(steps, returns, gradient_steps, env_steps)

    def _trial(self, algorithm: TrialAlgorithm, greedy: bool) -> Curve:
        rngs = self._rng("episodes"), self._rng("trial")
        found, lengths = trial(self.family, self.task, algorithm, self.episodes, *rngs, greedy)  # [episodes, M, E] both
        steps = _spread(algorithm.episodes)
        returns = found[steps].transpose(1, 2).double().cpu().numpy()  # [P, E, M]
        spent = torch.cat([torch.zeros(1), lengths.mean((1, 2)).cumsum(0).cpu()])[steps].round().long().tolist()
        curve = self._points(steps, list(returns), [0] * len(steps), spent, mean_over_tasks)
        whole = found.sum(0, dtype=torch.float64).cpu().numpy()  # [M, E]
        groups = list(self.groups.values()) or [np.arange(len(whole))]
        mean = float(np.mean([whole[rows].mean() for rows in groups]))
        each = np.mean([found[:, rows].mean((1, 2), dtype=torch.float64).tolist() for rows in groups], axis=0).tolist()
        return curve._replace(total=Total(algorithm.episodes, mean, standard_error([whole[rows] for rows in groups]), each))

    def _points(
        self,
        steps: list[int],
        returns: list[Scores],
        gradient_steps: list[int],
        env_steps: list[int],
        aggregate: Aggregate = iqm_over_tasks,
    ) -> Curve:
        apart = {name: [aggregate(scores[:, rows]) for scores in returns] for name, rows in self.groups.items()}
        points = [together(column) for column in zip(*apart.values(), strict=True)] or [aggregate(x) for x in returns]
        return Curve(steps, np.stack(returns), points, gradient_steps, env_steps, apart)

    def curve(self, algorithm: Algorithm, steps: int) -> Curve:
        """The algorithm's own adaptation: by ``steps`` gradient steps, or along a trial of its own length."""
        if isinstance(algorithm, TrialAlgorithm):
            return self._trial(algorithm, greedy=True)
        adapting = by_gradient(algorithm)
        return self._adaptation(adapting, adapting.adapt(self.task, steps, self._rng("support")), steps)

    def report(self, algorithm: Algorithm, steps: int) -> Report:
        """The algorithm's adaptation beside the references."""
        aggregate, sampled, scratch = iqm_over_tasks, None, None
        if isinstance(algorithm, TrialAlgorithm):
            aggregate = mean_over_tasks
            sampled = self._trial(algorithm, greedy=False) if algorithm.stochastic else None
        else:
            adapting = by_gradient(algorithm)
            begun = adapting.adapt_from_scratch(self.task, steps, self._rng("support"))
            scratch = self._adaptation(adapting, begun, steps, "from scratch, point")
        curve, random, learned = self.curve(algorithm, steps), self.random(aggregate), self.learned(algorithm)
        return Report(curve, sampled, scratch, random, learned, *self._optimum(aggregate))

    def _optimum(self, aggregate: Aggregate) -> tuple[Scores | None, Interval | None]:
        """The best return of each task ``[M]`` and over all, where the family can tell."""
        known = self.family.optimum(self.task)
        if known is None:
            return None, None
        optimum = known.double().cpu().numpy()
        return optimum, self._points([0], [optimum[None]], [0], [0], aggregate).points[0]

    def random(self, aggregate: Aggregate = iqm_over_tasks) -> Curve:
        """A policy that acts uniformly at random."""
        rng = self._rng("random")
        returns = self._returns(self.task, lambda obs: random_actions(self.family.spec, obs, rng))
        return self._points([0], [returns], [0], [0], aggregate)

    def learned(self, algorithm: Algorithm) -> Interval | None:
        """The networks of tasks the algorithm learned from scratch, each on its own task."""
        found = None if isinstance(algorithm, TrialAlgorithm) else by_gradient(algorithm).learned()
        if found is None:
            return None
        task, params = found
        returns = self._returns(task, lambda obs: by_gradient(algorithm).act(params, obs))
        groups = [rows.cpu().numpy() for rows in self.family.groups(task).values() if len(rows)]
        return together([iqm_interval(returns[:, rows]) for rows in groups]) if groups else iqm_interval(returns)


def standard_error(groups: list[Scores]) -> float | None:
    """Of the average of the groups' means; over a group's tasks ``[M, E]``, of a single task over its repeats.

    None where there is nothing to compare with.
    """
    errors = []
    for scores in groups:
        apart = scores.mean(1) if len(scores) > 1 else scores[0]
        if len(apart) < 2:
            return None
        errors.append(apart.std(ddof=1) / np.sqrt(len(apart)))
    return float(np.sqrt(np.sum(np.square(errors))) / len(groups))


def by_gradient(algorithm: Algorithm) -> GradientAlgorithm:
    """What is no :class:`TrialAlgorithm` adapts by gradient steps."""
    return cast(GradientAlgorithm, algorithm)


def _spread(episodes: int, most: int = 20) -> list[int]:
    """At most ``most`` of the episodes of a trial, the first and the last among them, close together where more changes."""
    if episodes <= most:
        return list(range(episodes))
    return sorted({round(k) - 1 for k in np.geomspace(1, episodes, most)})

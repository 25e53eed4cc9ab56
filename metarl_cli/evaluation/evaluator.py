"""Evaluation: adaptation curves of any algorithm on held-out tasks.

A curve is the return of whole greedy episodes before adaptation and after each adaptation step, per task, against the number
of gradient steps and environment steps (Beck 2023, arXiv:2301.08028, section 2.3). For an algorithm that adapts within a trial
it is the return of each episode of the trial; if the policy is stochastic, a second curve is measured with sampled actions in
the same environments. Evaluation has its own environments and random streams: its frequency and its number of tasks do not
change training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from metarl_cli.envs.tasks import shares
from metarl_cli.evaluation.curves import UNKNOWN, Curve, Differences, Level, Levels, Report, Total
from metarl_cli.evaluation.statistics import (
    Aggregate,
    Interval,
    Scores,
    average_intervals,
    average_summaries,
    iqm,
    mean,
    normalised_over_tasks,
    over_tasks,
    summarise,
)
from metarl_cli.experience.rollout import RandomPolicy, run_episodes
from metarl_cli.interfaces import Adapted, Algorithm, Budget, Demonstrated, Family, Policy, Task, device_of
from metarl_cli.progress import track
from metarl_cli.seeding import torch_rng


class Evaluator:
    """Measures adaptation on a fixed set of tasks.

    Args:
        family: the family of the tasks.
        task: the held-out tasks.
        episodes: whole episodes per task and adaptation step, or trials per task for an algorithm that adapts within a trial.
        seed: seed of the random streams of support and evaluation, which also depend on the split.
        split: the tasks' split.
    """

    def __init__(self, family: Family, task: Task, episodes: int, seed: int, split: str):
        self.family, self.task, self.episodes, self.seed, self.split = family, task, episodes, seed, split
        self.device = device_of(task)
        self.groups = {name: rows.cpu().numpy() for name, rows in family.groups(task).items() if len(rows)}
        solved = family.solved(task)
        self.solved = None if solved is None else solved.double().cpu().numpy()  # [M]

    def rng(self, name: str) -> torch.Generator:
        """Return a new generator of the stream ``name`` of this split."""
        return torch_rng(self.seed, self.split, name, device=self.device)

    def returns(self, task: Task, policy: Policy, rng: torch.Generator) -> Scores:
        """Return the returns ``[E, M]`` of episodes with the same start for every policy; the policy draws from ``rng``.

        Where the family computes the expected return, all are that.
        """
        known = self.family.expected_return(task, policy)
        if known is not None:
            return np.repeat(known.double().cpu().numpy()[None], self.episodes, 0)
        returns, _ = run_episodes(self.family, task, policy, self.episodes, self.rng("episodes"), rng)
        return returns[0].T.double().cpu().numpy()

    def _curve(self, adaptations: Iterator[Adapted], most: int, label: str, greedy: bool = True) -> Curve:
        """Measure each policy of an adaptation, or each episode of the one policy whose state adapts."""
        steps, returns, gradient_steps, env_steps, demonstrated = [], [], [], [], list[Demonstrated | None]()
        for adapted in track(adaptations, most + 1, label):
            if adapted.episodes is not None:
                return self._trial(adapted.policy, adapted.episodes, greedy)
            steps.append(adapted.step)
            returns.append(self.returns(self.task, adapted.policy, self.rng("policy")))
            gradient_steps.append(adapted.gradient_steps)
            env_steps.append(adapted.env_steps)
            demonstrated.append(adapted.demonstrated)
        differences = self._differences(returns, demonstrated)
        curve = self._points(steps, returns, gradient_steps, env_steps)
        return curve._replace(demonstrated=any(demonstrated), differences=differences)

    def _differences(self, returns: list[Scores], demonstrated: list[Demonstrated | None]) -> Differences | None:
        """Return how far policies are below the best ones, here and where demonstrations took place; None without them."""
        places = [(each.demonstrations.task, each.policy) for each in demonstrated if each is not None]
        here = [self._below_optimum(self.task, x) for x in returns if places]
        there = [self._below_optimum(task, self.returns(task, policy, self.rng("policy"))) for task, policy in places]
        known, before = [x for x in here + there if x is not None], len(demonstrated) - len(places)
        return Differences(known[: len(here)], known[:before] + known[len(here) :]) if known else None

    def _below_optimum(self, task: Task, returns: Scores) -> Interval | None:
        """Return by how much the mean return is below the optimum; None where that is not known."""
        best = self.family.optimum(task)
        return None if best is None else over_tasks(best.double().cpu().numpy() - returns, mean)

    def _trial(self, policy: Policy, episodes: int, greedy: bool) -> Curve:
        rngs = self.rng("episodes"), self.rng("trial")
        each, lengths = run_episodes(self.family, self.task, policy, self.episodes, *rngs, episodes, greedy)  # [episodes, M, E]
        steps = _spread(episodes)
        returns = each[steps].transpose(1, 2).double().cpu().numpy()  # [P, E, M]
        spent = torch.cat([torch.zeros(1), lengths.mean((1, 2)).cumsum(0).cpu()])[steps].round().long().tolist()
        curve = self._points(steps, list(returns), [0] * len(steps), spent, mean)
        whole = each.sum(0, dtype=torch.float64).cpu().numpy()  # [M, E]
        groups = list(self.groups.values()) or [np.arange(len(whole))]
        total = float(np.mean([whole[rows].mean() for rows in groups]))
        means = np.mean([each[:, rows].mean((1, 2), dtype=torch.float64).tolist() for rows in groups], axis=0).tolist()
        return curve._replace(total=Total(episodes, total, standard_error([whole[rows] for rows in groups]), means))

    def _points(
        self,
        steps: list[int],
        returns: list[Scores],
        gradient_steps: list[int],
        env_steps: list[int],
        aggregate: Aggregate = iqm,
    ) -> Curve:
        per_group = {name: [over_tasks(scores[:, rows], aggregate) for scores in returns] for name, rows in self.groups.items()}
        averages = [average_intervals(column) for column in zip(*per_group.values(), strict=True)]
        points = averages or [over_tasks(scores, aggregate) for scores in returns]
        groups = list(self.groups.values()) or [np.arange(returns[0].shape[1])]
        solved = [None if self.solved is None else self.solved[rows] for rows in groups]
        summaries = [
            average_summaries([summarise(x.mean(0)[rows], each) for rows, each in zip(groups, solved, strict=True)])
            for x in returns
        ]
        return Curve(steps, np.stack(returns), points, summaries, gradient_steps, env_steps, per_group)

    def curve(self, algorithm: Algorithm, budget: Budget, greedy: bool = True) -> Curve:
        """Measure adaptation before and after each gradient step, or along the episodes of a trial."""
        return self._curve(algorithm.adapt(self.task, budget, self.rng("support")), budget.steps, "adaptation, point", greedy)

    def report(
        self,
        algorithm: Algorithm,
        budget: Budget,
        adaptations: Sequence[Adapted] | None = None,
        levels: Levels = UNKNOWN,
    ) -> Report:
        """Measure the algorithm's adaptation and the references.

        Args:
            algorithm: what adapts.
            budget: of the adaptation.
            adaptations: of ``algorithm`` to these tasks, if they exist already; None: it adapts now.
            levels: the returns of the robust policy and of the oracle on these tasks, for the normalised score.
        """
        sampled = scratch = None
        if adaptations is None:
            curve = self.curve(algorithm, budget)
        else:
            curve = self._curve(iter(adaptations), budget.steps, "adaptation, point")
        if curve.total and next(algorithm.adapt(self.task, budget, self.rng("support"))).policy.stochastic:
            sampled = self.curve(algorithm, budget, greedy=False)
        if (fresh := algorithm.adapt_from_scratch(self.task, budget, self.rng("support"))) is not None:
            scratch = self._curve(fresh, budget.steps, "from scratch, point")
        aggregate = mean if curve.total else iqm
        own, optimum, shared = self.own_tasks(algorithm), self._optimum(aggregate), shares(self.family, self.split)
        robust, oracle = (self._level(level, aggregate) for level in levels)
        score = self._normalised(curve, robust, oracle or optimum)
        references = (self.random(aggregate), own, optimum, robust, oracle, score, levels)
        return Report(curve, sampled, scratch, *references, shared, algorithm.trained_steps)

    def _level(self, level: Level | None, aggregate: Aggregate) -> Curve | None:
        """Return the one point of a reference whose returns are known."""
        return None if level is None else self._points([0], [level.returns[None]], [0], [0], aggregate)

    def _normalised(self, curve: Curve, robust: Curve | None, oracle: Curve | None) -> list[Interval] | None:
        """Return the normalised score of each point; None without a reference, or where the oracle is not above the robust."""
        if robust is None or oracle is None:
            return None
        groups = list(self.groups.values()) or [np.arange(curve.returns.shape[-1])]
        levels = robust.returns[0, 0], oracle.returns[0, 0]
        scores = [
            average_intervals([normalised_over_tasks(x.mean(0)[rows], *(each[rows] for each in levels)) for rows in groups])
            for x in curve.returns
        ]
        return scores if np.isfinite(scores[0].value) else None

    def _optimum(self, aggregate: Aggregate) -> Curve | None:
        """Return the return of an episode under the best policy that knows the task; None if the family does not know it."""
        known = self.family.optimum(self.task)
        return self._level(None if known is None else Level(known.double().cpu().numpy(), "the family"), aggregate)

    def random(self, aggregate: Aggregate = iqm) -> Curve:
        """Measure the uniformly random policy."""
        returns = self.returns(self.task, RandomPolicy(self.family.spec.actions), self.rng("random"))
        return self._points([0], [returns], [0], [0], aggregate)

    def own_tasks(self, algorithm: Algorithm) -> Interval | None:
        """Measure an algorithm that learns each training task independently, on its training tasks; None for all others."""
        if not algorithm.own_tasks:
            return None
        task = algorithm.task
        learned = next(algorithm.adapt(task, Budget(), self.rng("support")))
        returns = self.returns(task, learned.policy, self.rng("policy"))
        groups = [rows.cpu().numpy() for rows in self.family.groups(task).values() if len(rows)]
        return (
            average_intervals([over_tasks(returns[:, rows], mean) for rows in groups]) if groups else over_tasks(returns, mean)
        )


def standard_error(groups: list[Scores]) -> float | None:
    """Return the standard error of the average of the groups' means; None if a group has a single score.

    The standard error is over the tasks of a group ``[M, E]``, or over the repeats of a single task.
    """
    errors = []
    for scores in groups:
        means = scores.mean(1) if len(scores) > 1 else scores[0]
        if len(means) < 2:
            return None
        errors.append(means.std(ddof=1) / np.sqrt(len(means)))
    return float(np.sqrt(np.sum(np.square(errors))) / len(groups))


def _spread(episodes: int, most: int = 20) -> list[int]:
    """Return at most ``most`` log-spaced episode indices, including the first and the last."""
    if episodes <= most:
        return list(range(episodes))
    return sorted({round(k) - 1 for k in np.geomspace(1, episodes, most)})

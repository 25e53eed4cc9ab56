"""Is it adaptation? The return after adaptation to supports that are changed in one respect.

A policy that is called adapted may owe its return to less than the task. Its support is replaced by that of another task, of a
task that differs in a single parameter, or by one whose rewards or actions say nothing; it then acts in its own task. A change
that costs nothing was in something that the adaptation does not use.

    by gradient, or by inference    the algorithm adapts to the changed support; the last policy acts in the own task
    by memory                       all episodes of a trial but the last are in the changed task; the last one in the own task

All supports have the same random streams, and all policies act in the same episodes: a policy that ignores its support has
differences of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.changed import Change, ChangedEnv, ChangedFamily, Shuffled, WithoutRewards
from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import Levels
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.statistics import (
    Interval,
    Scores,
    average_intervals,
    mean,
    over_tasks,
    share_over_tasks,
    worst_tenth,
)
from metarl_cli.experience.finite import StepCheck
from metarl_cli.experience.rollout import rollout, run_episodes
from metarl_cli.interfaces import Algorithm, Budget, Env, Family, Policy, State, Step, Task, num_tasks
from metarl_cli.progress import note, track

OWN, BEFORE = "its own", "none (before adaptation)"
Rows = np.ndarray  # [m] indices of tasks


class Support(NamedTuple):
    """A support that differs from the tasks' own."""

    name: str
    task: Task  # M tasks whose environments it is collected in
    rows: Rows  # the tasks that have such a support; the others have their own
    change: type[ChangedEnv] | None = None  # of these environments


class Effect(NamedTuple):
    """What a support leads to, on the tasks that have it."""

    support: str
    rows: Rows  # [m]
    returns: Scores  # [m] mean return of an episode
    mean: Interval
    worst_tenth: float
    difference: Interval  # to the return with the own support, paired over tasks
    share: Interval | None  # of the difference in the mean range from the robust policy to the oracle; None if unknown


class Probe(NamedTuple):
    """What supports lead to; the first is the tasks' own."""

    effects: list[Effect]
    levels: Levels
    span: Scores | None  # [M] from the robust policy to the oracle


def probe(evaluator: Evaluator, algorithm: Algorithm, budget: Budget, levels: Levels) -> Probe:
    """Measure an algorithm's adaptation with changed supports.

    Args:
        evaluator: of the tasks.
        algorithm: what adapts.
        budget: of the adaptation.
        levels: the references on these tasks.

    Raises:
        UserError: for an algorithm that does not adapt, or a trial of a single episode.
    """
    measure = _measurement(evaluator, algorithm, budget)
    changed = list(supports(evaluator.family, evaluator.task))
    every = np.arange(num_tasks(evaluator.task))
    measured = [(BEFORE, every, measure(None, []))]
    for each in track(changed, len(changed), "support"):
        made: list[ChangedEnv] = []
        returns = measure(each, made)
        if made and not any(env.changed for env in made):
            note(f"probe=support: no row for {each.name}: it would be the same experience")
        else:
            measured.append((each.name, each.rows, returns))
    before, own, *others = measured
    span = _span(evaluator, levels)
    effects = [_effect(evaluator, *each, own[2], span) for each in (own, before, *others)]
    return Probe(effects, levels, span)


def _span(evaluator: Evaluator, levels: Levels) -> Scores | None:
    known = evaluator.family.optimum(evaluator.task) if levels.oracle is None else None
    oracle = known.double().cpu().numpy() if known is not None else levels.oracle and levels.oracle.returns
    return None if levels.robust is None or oracle is None else oracle - levels.robust.returns


def _effect(evaluator: Evaluator, name: str, rows: Rows, returns: Scores, own: Scores, span: Scores | None) -> Effect:
    """Compare the returns ``[M]`` with those of the own support, on the tasks ``rows``; averaged over groups of tasks."""
    groups = [np.intersect1d(group, rows) for group in evaluator.groups.values()] or [rows]
    groups = [group for group in groups if len(group)]
    change = returns - own
    share = None
    if span is not None:
        share = average_intervals([share_over_tasks(change[group], span[group]) for group in groups])
    return Effect(
        name,
        rows,
        returns[rows],
        average_intervals([over_tasks(returns[None, group], mean) for group in groups]),
        float(np.mean([worst_tenth(returns[group]) for group in groups])),
        average_intervals([over_tasks(change[None, group], mean) for group in groups]),
        share if share is not None and np.isfinite(share.value) else None,
    )


# -- the supports


def supports(family: Family, task: Task) -> Iterator[Support]:
    """Yield the supports of M tasks, their own first."""
    num = num_tasks(task)
    every = np.arange(num)
    yield Support(OWN, task, every)
    groups = {name: rows.cpu().numpy() for name, rows in family.groups(task).items()} or {"": every}
    parameters = [(name, name, group, rows) for group, rows in groups.items() for name in _of(task, group)]
    varying = [each for each in parameters if len(donors(task, [each[0]], each[3])[0])]
    if varying:
        pairs = [donors(task, list(_of(task, group)), rows) for group, rows in groups.items()]
        takers, givers = (np.concatenate(column) for column in zip(*pairs, strict=True))
        yield Support("another task's", _given(task, list(task), takers, givers), np.sort(takers))
    if len(varying) > len({group for _, _, group, _ in varying}):  # else it is the only difference between tasks
        for name, parameter, _, rows in varying:
            for said, sign in _signs(task[name][rows]):
                takers, givers = donors(task, [name], rows, sign)
                if len(takers):
                    yield Support(f"another {parameter}{said}", _given(task, [name], takers, givers), np.sort(takers))
    yield Support("its own, rewards 0", task, every, WithoutRewards)
    yield Support("its own, actions shuffled", task, every, Shuffled)


def _of(task: Task, group: str) -> Iterator[str]:
    """Yield the parameters of a group of tasks: those with its name before a dot; all, where there are no groups."""
    for name in task:
        if not group or name.startswith(f"{group}."):
            yield name


def _signs(values: Tensor) -> list[tuple[str, int | None]]:
    """Return which others a task may take the value of: those of its sign and those of the other, where there are both."""
    signed = values.dim() == 1 and bool((values > 0).any() and (values < 0).any())
    return [(", same sign", 1), (", other sign", -1)] if signed else [("", None)]


def donors(task: Task, names: list[str], rows: Rows, sign: int | None = None) -> tuple[Rows, Rows]:
    """Return tasks ``[m]`` of ``rows``, and for each the next one, in a circle, that differs in one of ``names``.

    Tasks without such a one are left out. With ``sign``, the product of the two values has this sign.
    """
    values = torch.cat([task[name].reshape(num_tasks(task), -1) for name in names], 1).double().cpu().numpy()[rows]
    giver = np.full(len(rows), -1)
    for offset in range(1, len(rows)):
        other = np.roll(np.arange(len(rows)), -offset)
        fits = (values != values[other]).any(1)
        if sign is not None:
            fits &= np.sign(values * values[other])[:, 0] == sign
        giver = np.where((giver < 0) & fits, other, giver)
        if (giver >= 0).all():
            break
    return rows[giver >= 0], rows[giver[giver >= 0]]


def _given(task: Task, names: list[str], takers: Rows, givers: Rows) -> Task:
    """Return the tasks, where ``takers`` have the parameters ``names`` of ``givers``."""
    changed = dict(task)
    for name in names:
        changed[name] = task[name].clone()
        changed[name][torch.as_tensor(takers)] = task[name][torch.as_tensor(givers)]
    return changed


# -- adaptation to a support, and the return in the own task


Measure = Callable[[Support | None, list[ChangedEnv]], Scores]


def _measurement(evaluator: Evaluator, algorithm: Algorithm, budget: Budget) -> Measure:
    """Return a function of a support, or of none, to the mean returns ``[M]`` of episodes in the own tasks.

    The changed environments of the support are appended to the list that it gets.
    """
    if algorithm.adapts_by == "demonstrations":
        raise UserError("probe=support: this algorithm collects no support to change, it is shown episodes; leave probe out")
    first = next(algorithm.adapt(evaluator.task, budget, evaluator.rng("support")))
    if first.episodes is not None:
        if first.episodes < 2:
            raise UserError("probe=support: a trial of one episode has no support before its last one; give trial=2 or more")
        return lambda support, made: _after_trial(evaluator, first.policy, support, first.episodes or 0, made)

    def after(support: Support | None, made: list[ChangedEnv]) -> Scores:
        changed = support and support.change
        family = ChangedFamily(evaluator.family, _kept(changed, made)) if changed else None
        task = evaluator.task if support is None else support.task
        policies = algorithm.adapt(task, budget, evaluator.rng("support"), family)
        last, adapts = next(policies), support is None
        while support and (further := next(policies, None)):
            last, adapts = further, True
        if not adapts:
            raise UserError("probe=support: this algorithm does not adapt: it has no support to change; leave probe out")
        scores: Scores = evaluator.returns(evaluator.task, last.policy, evaluator.rng("policy")).mean(0)
        return scores

    return after


def _kept(change: type[ChangedEnv], made: list[ChangedEnv]) -> Change:
    """Return a change whose environments are appended to ``made``."""

    def changed(env: Env) -> Env:
        made.append(change(env))
        return made[-1]

    return changed


def _after_trial(
    evaluator: Evaluator, policy: Policy, support: Support | None, episodes: int, made: list[ChangedEnv]
) -> Scores:
    """Return the mean returns ``[M]`` of the last episode of trials whose earlier episodes are those of a support."""
    chance = evaluator.rng("trial")
    begun = chance.get_state()
    state = policy.start(evaluator.episodes, chance)
    if support is not None:
        env = evaluator.family.make(support.task, evaluator.episodes, evaluator.rng("support"))
        most = (episodes - 1) * evaluator.family.spec.horizon
        state = live_through(_kept(support.change, made)(env) if support.change else env, policy, state, episodes - 1, most)
    chance.set_state(begun)  # the chance of the last episode is the same after every support
    going_on = _GoingOn(policy, state)
    parts = evaluator.family, evaluator.task, going_on, evaluator.episodes, evaluator.rng("episodes"), chance
    returns: Scores = run_episodes(*parts)[0][0].mean(1).double().cpu().numpy()
    return returns


class _GoingOn(Policy):
    """A policy that starts from a state of another trial."""

    def __init__(self, policy: Policy, state: State):
        self.policy, self.state = policy, state

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        return self.state

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        return self.policy.act(state, obs)

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        return self.policy.observe(state, obs, action, step)


class _Waiting(Policy):
    """A policy that neither sees nor remembers anything in environments that have had their episodes."""

    def __init__(self, policy: Policy, left: Tensor):
        self.policy, self.left = policy, left

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        action, chosen = self.policy.act(state, obs)
        return action, {"before": state, "chosen": chosen}

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        after = self.policy.observe(state["chosen"], obs, action, step)
        going = self.left > 0
        self.left = self.left - (going & step.ended).to(self.left.dtype)
        return after if bool(going.all()) else {name: choose(going, after[name], state["before"].get(name)) for name in after}


def live_through(env: Env, policy: Policy, state: State, episodes: int, most: int) -> State:
    """Play so many episodes in each of M x N environments; returns the state of each when its own last one has ended."""
    waiting = _Waiting(policy, torch.full(env.obs.shape[:2], episodes, device=env.obs.device))
    watch = StepCheck(env)
    for _, moment in zip(range(most), rollout(env, waiting, state), strict=False):
        watch.see(moment.step)
        state = moment.state
        if not bool((waiting.left > 0).any()):
            break
    watch.finish()
    return state


def choose(going: Tensor, after: Any, before: Any) -> Any:
    """Return a policy's state that has moved on where ``going [M, N]``, and is as before elsewhere.

    Tensors are ``[M, N, ...]`` or ``[M * N, ...]``; what has another shape, or is no tensor, belongs to all.
    """
    if isinstance(after, dict):
        return {name: choose(going, value, (before or {}).get(name)) for name, value in after.items()}
    if not isinstance(after, Tensor) or not isinstance(before, Tensor) or after.shape != before.shape:
        return after
    for mask in (going, going.flatten()):
        if after.shape[: mask.dim()] == mask.shape:
            return torch.where(mask.view(*mask.shape, *[1] * (after.dim() - mask.dim())), after, before)
    return after

"""A saved run: its evaluation, and adaptation to tasks and environments."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex

import gymnasium
import torch

from metarl_cli.config.compatibility import check_budget
from metarl_cli.config.footprint import check_memory, cost_of_evaluating
from metarl_cli.config.models import Hardware
from metarl_cli.envs.live import LiveFamily
from metarl_cli.errors import UserError
from metarl_cli.evaluation import probe_report
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.probe import Probe
from metarl_cli.evaluation.report import as_json, beyond_training
from metarl_cli.experience.finite import LARGEST
from metarl_cli.experience.rollout import Played, play
from metarl_cli.interfaces import Adapted, Budget, Family, Footprint, Policy, State, Task
from metarl_cli.progress import note
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import Components, build, using
from metarl_cli.runs.demonstrations import read_demonstrations
from metarl_cli.runs.folder import LOCATION_KEYS, RunFolder, read_config, reading
from metarl_cli.runs.levels import Folders, find_levels
from metarl_cli.runs.policy import AdaptedPolicy, plain, restore
from metarl_cli.runs.results import PROBE, load_weights, measure, measure_probe, read_results
from metarl_cli.seeding import torch_rng

FRAMES = 400  # at most, of a film


class Adaptation(NamedTuple):
    """An adaptation to one task: every policy on the way, and the last one for use."""

    steps: list[Adapted]
    policy: AdaptedPolicy
    played: Played | None  # the trial that a policy with memory has lived through


def number(name: str, value: SupportsIndex | None, least: int) -> int | None:
    """Return a whole number that a user gave, or None.

    Raises:
        UserError: if it is no whole number, or below ``least``.
    """
    if value is None:
        return None
    try:
        checked = operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r}: must be an integer >= {least}") from None
    if checked < least:
        raise UserError(f"{name}={checked}: must be an integer >= {least}")
    return checked


class Run:
    """A run that was trained.

    Args:
        path: its folder.
        hardware: to compute on; None: as it was trained.
        checkpoint: the weights chosen on validation tasks, or the latest.

    Raises:
        UserError: if there is no such run, or it cannot be read.
    """

    def __init__(self, path: str | Path, hardware: Hardware | None = None, checkpoint: Literal["best", "last"] = "best"):
        self.folder = RunFolder(path)
        self.config = self.folder.config(hardware)
        self.family, self.algorithm, self.device = build(self.config)
        self.checkpoint = self.folder.checkpoint(checkpoint)
        self.env_steps = load_weights(self.folder, self.algorithm, checkpoint)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def score(self) -> float | None:
        """The score on the test tasks; None while it trains."""
        score = self.folder.manifest().get("score")
        return None if score is None else float(score)

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Every test result in the folder, by the name of its file, such as ``test`` and ``ood``.

        Raises:
            UserError: if one is damaged or was changed.
        """
        return read_results(self.folder)

    @property
    def validation_score(self) -> float:
        """The best score on the validation tasks: what a search for settings may use."""
        return self.folder.validation_score()

    def budget(self, steps: int | None, trial: int | None, default: int | None = None) -> Budget:
        """Return what an adaptation may spend; ``default`` steps, or those of the test at the end of training.

        Raises:
            UserError: for steps of an algorithm that adapts within a trial or not at all, or a trial of another one.
        """
        check_budget(self.config.algo, steps, trial)
        steps, trial = number("steps", steps, 0), number("trial", trial, 1)
        if self.algorithm.adapts_by == "memory":
            return Budget(0, trial)
        return Budget(steps if steps is not None else default or self.config.test.steps or 0)

    # -- evaluation

    def prepared(
        self, split: str, tasks: int | None, episodes: int | None, steps: int | None, trial: int | None
    ) -> tuple[str, Evaluator, Budget]:
        """Return the name of an evaluation, its evaluator and its budget; None stands for what the end of training had.

        Raises:
            UserError: for a split the family does not have, or a budget the algorithm cannot spend.
        """
        if split not in self.family.splits[1:]:
            known = " or ".join(self.family.splits[1:])
            raise UserError(f"the family of {self.folder} has no {split} tasks; choose split={known}")
        default = self.config.test if split != "validation" else self.config.eval
        tasks, episodes = number("tasks", tasks, 1) or default.tasks, number("episodes", episodes, 1) or default.episodes
        budget = self.budget(steps, trial, default.steps)
        self.folder.check_tasks(self.config, self.family)
        cost = cost_of_evaluating(self.algorithm, self.family, tasks, episodes)
        check_memory(Footprint([cost]), self.device, "the test")
        held_out = held_out_tasks(self.family, split, tasks, self.config.tasks_seed)
        evaluator = Evaluator(self.family, held_out, episodes, self.config.seed, split)
        spent = f"steps{budget.steps}"
        if self.algorithm.adapts_by == "memory":
            spent = f"trial{next(self.algorithm.adapt(held_out, budget, torch.Generator(self.device))).episodes}"
        return f"{split}-{self.checkpoint.stem}-tasks{tasks}-episodes{episodes}-{spent}", evaluator, budget

    def measure(
        self,
        split: str,
        tasks: int | None,
        episodes: int | None,
        steps: int | None,
        trial: int | None,
        robust: Folders = None,
        oracle: Folders = None,
    ) -> tuple[str, Report]:
        """Test on held-out tasks and keep the result; returns the name of its files in ``results/``, and the report.

        Raises:
            UserError: for a split the family does not have, a budget the algorithm cannot spend, or a reference that was not
                tested on these tasks.
        """
        with using(self.config.hardware):
            name, evaluator, budget = self.prepared(split, tasks, episodes, steps, trial)
            levels = find_levels(self.config, evaluator, robust, oracle)
            return name, measure(self.folder, evaluator, self.algorithm, budget, self.env_steps, name, levels).report

    def measure_probe(
        self,
        split: str,
        tasks: int | None,
        episodes: int | None,
        steps: int | None,
        trial: int | None,
        robust: Folders = None,
        oracle: Folders = None,
    ) -> tuple[str, Probe]:
        """Measure what the adaptation uses of its support and keep the result; see :meth:`measure`.

        Raises:
            UserError: as :meth:`measure` does, and for an algorithm that does not adapt.
        """
        with using(self.config.hardware):
            name, evaluator, budget = self.prepared(split, tasks, episodes, steps, trial)
            levels, name = find_levels(self.config, evaluator, robust, oracle), f"{PROBE}{name}"
            return name, measure_probe(self.folder, evaluator, self.algorithm, budget, self.env_steps, name, levels)

    def test(
        self,
        split: Literal["validation", "test", "ood"] = "test",
        tasks: int | None = None,
        episodes: int | None = None,
        steps: int | None = None,
        trial: int | None = None,
        robust: Folders = None,
        oracle: Folders = None,
    ) -> dict[str, Any]:
        """Measure adaptation on held-out tasks; returns curves as plain numbers, as in ``results/*.json``.

        Args:
            split: which tasks.
            tasks: how many; None: as at the end of training, and so for the others.
            episodes: full episodes per task and step.
            steps: adaptation steps: gradient steps, or supports.
            trial: episodes of a trial, for an algorithm with memory.
            robust: folder of a run that cannot know the task, or folders of several seeds, for the normalised score; None: the
                levels that were measured for the tasks of metarl's own environments, where there are.
            oracle: likewise, of a run that is given the task.

        Raises:
            UserError: for a split the family does not have, a budget the algorithm cannot spend, or a reference that was not
                tested on these tasks.
        """
        name, report = self.measure(split, tasks, episodes, steps, trial, robust, oracle)
        self._warn(steps)
        held_out = held_out_tasks(self.family, split, report.curve.returns.shape[-1], self.config.tasks_seed)
        return as_json(report, held_out, {"split": split, "env_steps": self.env_steps, "name": name})

    def probe(
        self,
        split: Literal["validation", "test", "ood"] = "test",
        tasks: int | None = None,
        episodes: int | None = None,
        steps: int | None = None,
        trial: int | None = None,
        robust: Folders = None,
        oracle: Folders = None,
    ) -> dict[str, Any]:
        """Measure what the adaptation uses of its support; returns plain numbers, as in ``results/probe-*.json``.

        The arguments are those of :meth:`test`.

        Raises:
            UserError: as :meth:`test` does, and for an algorithm that does not adapt.
        """
        name, measured = self.measure_probe(split, tasks, episodes, steps, trial, robust, oracle)
        held_out = held_out_tasks(self.family, split, len(measured.effects[0].rows), self.config.tasks_seed)
        return probe_report.as_json(measured, held_out, {"split": split, "env_steps": self.env_steps, "name": name})

    # -- adaptation

    def task(self, parameters: Mapping[str, float | str]) -> Task:
        """Return the one task with these parameters, the family's nominal ones elsewhere.

        Raises:
            UserError: for a parameter the family does not have, or a value that makes no sense.
        """
        try:
            values = {name: self.family.number(name, value) for name, value in parameters.items()}
            for name, value in values.items():
                if not abs(value) <= LARGEST:  # nan, too
                    raise ValueError(f"{name} must be a finite number, at most {LARGEST:g}, got {value:g}")
            task = self.family.named_task(values)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        for beyond in self.family.untrained(values):
            note(f"task.{beyond}")
        return task

    def demonstrated(
        self, budget: Budget, path: str | Path, parameters: Mapping[str, float | str], steps: int | None
    ) -> Budget:
        """Return the budget with the demonstrations of a file: all of them, or the first ``steps``.

        Args:
            budget: what else may be spent.
            path: the file.
            parameters: of the task that is adapted to.
            steps: how many demonstrations to use; None: all.

        Raises:
            UserError: if the file cannot be read or has fewer, or the algorithm does not adapt by demonstrations.
        """
        if self.algorithm.adapts_by != "demonstrations":
            raise UserError(f"demonstrations={path}: the run's algorithm does not adapt by demonstrations; algo=mandril does")
        given = read_demonstrations(path, self.family, parameters, self.task)
        num = given.experience.reward.shape[2]
        if steps is not None and steps > num:
            raise UserError(f"steps={steps}: there are {num} demonstrations in {path}")
        return budget._replace(steps=steps or num, demonstrations=given)

    def adapt(
        self,
        *,
        steps: int | None = None,
        trial: int | None = None,
        demonstrations: str | Path | None = None,
        seed: int = 0,
        task: Mapping[str, float | str] | None = None,
        **parameters: float | str,
    ) -> AdaptedPolicy:
        """Adapt to one task in the family's own environments; returns the policy.

        Args:
            steps: gradient steps, supports or demonstrations; None: as at the end of training.
            trial: episodes that a policy with memory lives through; None: as in training.
            demonstrations: a file of one's own; None: by the family, to an algorithm that adapts by demonstrations.
            seed: of the support, or of the trial.
            task: task parameters whose names are no Python names.
            parameters: task parameters, such as ``gravity=15``; the family's nominal values elsewhere.

        Raises:
            UserError: for a parameter the family does not have, or a budget the algorithm cannot spend.
        """
        budget, wanted = self.budget(steps, trial), {**(task or {}), **parameters}
        if demonstrations is not None:
            budget = self.demonstrated(budget, demonstrations, wanted, steps)
        self._warn(steps)
        return self.adaptation(self.task(wanted), budget, seed).policy

    def adapt_on(
        self, env: gymnasium.Env[Any, Any], episodes: int = 8, steps: int | None = None, seed: int = 0
    ) -> AdaptedPolicy:
        """Adapt to an environment of one's own with the spaces of the run's family; returns the policy.

        Args:
            env: any Gymnasium environment; it is stepped, one episode after another.
            episodes: the episodes of experience: of the support, or of the trial of a policy with memory.
            steps: adaptation steps: gradient steps, or supports; None: as at the end of training.
            seed: of the episodes and of the exploration.

        Raises:
            UserError: if the spaces differ, or the algorithm needs several environments at once.
        """
        if not self.algorithm.learns:
            raise UserError("a reference adapts to tasks of its own family alone")
        live = LiveFamily(env, self.family.spec, self.device)
        budget = self.budget(steps, None)._replace(episodes=number("episodes", episodes, 1))
        self._warn(steps)
        return self.adaptation(live.task, budget, seed, live).policy

    def _warn(self, steps: int | None) -> None:
        """Say that a user has asked for more adaptation steps than the run was trained for, where no table says it."""
        for line in beyond_training(steps or 0, self.algorithm.trained_steps):
            note(line)

    @torch.no_grad()
    def adaptation(self, task: Task, budget: Budget, seed: int, family: Family | None = None, frames: int = 0) -> Adaptation:
        """Adapt to one task, in the environments of ``family`` or of the run's own; a policy with memory plays a trial."""
        seed = number("seed", seed, 0) or 0
        with using(self.config.hardware):
            return self._adaptation(task, budget, seed, family, frames)

    def _adaptation(self, task: Task, budget: Budget, seed: int, family: Family | None, frames: int) -> Adaptation:
        rng = torch_rng(seed, "adapt", "support", device=self.device)
        steps = list(self.algorithm.adapt(task, budget, rng, family))
        last, live = steps[-1], family or self.family
        if lost := [name for name, value in last.policy.state_dict().get("params", {}).items() if not value.isfinite().all()]:
            raise UserError(f"the adapted weights are not finite; take fewer steps ({', '.join(lost[:3])})")
        chance = torch_rng(seed, "adapt", "trial", device=self.device)
        state, played = last.policy.start(1, chance), None
        if last.episodes is not None:
            env = live.make(task, 1, torch_rng(seed, "adapt", "film", device=self.device), frames > 0)
            played = play(live, env, last.policy, state, last.episodes, frames)
            state = played.state
        return Adaptation(steps, self._for_use(last.policy, state, task, live.first_action), played)

    @torch.no_grad()
    def before_adaptation(self) -> AdaptedPolicy:
        """Return the policy on the nominal task before it has adapted; one with memory at the start of a trial."""
        task = self.task({})
        with using(self.config.hardware):
            adapted = next(iter(self.algorithm.adapt(task, Budget(), torch_rng(0, "adapt", "support", device=self.device))))
            state = adapted.policy.start(1, torch_rng(0, "adapt", "trial", device=self.device))
        return self._for_use(adapted.policy, state, task, self.family.first_action)

    def export_adaptation(self, folder: str | Path, formats: Sequence[str] = ()) -> dict[str, Any]:
        """Write the policy and the step of the adaptation as files with which a device adapts alone; returns their contract.

        Args:
            folder: where to write.
            formats: ``onnx`` and ``pt2``; none: both.

        Raises:
            UserError: if the adaptation is no function of tensors, a package is missing, or nothing can be written.
        """
        from metarl_cli.runs.export_adaptation import export_adaptation

        parts = Components(self.family, self.algorithm, self.device)
        with using(self.config.hardware):
            return export_adaptation(parts, self.config, Path(folder), formats)

    def _for_use(self, policy: Policy, state: State, task: Task, first_action: int) -> AdaptedPolicy:
        saved = {
            "config": self.config.model_dump(exclude=LOCATION_KEYS),
            "weights": plain(self.algorithm.weights()),
            "task": {name: value[0].tolist() for name, value in task.items()},
            "device": self.device,
        }
        return AdaptedPolicy(policy, state, self.family.spec, saved, first_action)

    def film(self, task: Task, adapted: Adapted, seed: int) -> Played:
        """Draw one greedy episode."""
        env = self.family.make(task, 1, torch_rng(seed, "adapt", "film", device=self.device), True)
        state = adapted.policy.start(1, torch_rng(seed, "adapt", "trial", device=self.device))
        with using(self.config.hardware):
            return play(self.family, env, adapted.policy, state, frames=FRAMES)


def load_policy(path: Path, hardware: Hardware | None = None) -> AdaptedPolicy:
    """Load what :meth:`AdaptedPolicy.save` wrote.

    Raises:
        UserError: if it is damaged, or no such file.
    """
    saved = checkpoint.load(path)
    with checkpoint.fitting(path, "it is no adapted policy"):
        values = saved["config"]
        if hardware:
            values = {**values, "hardware": {**values["hardware"], **reading(hardware)}}
        config = read_config(values, None, str(path))
        family, algorithm, device = build(config)
        task = {name: torch.tensor([value], device=device) for name, value in saved["task"].items()}
        return restore(algorithm, task, saved, family.spec, torch_rng(config.seed, "adapt", "loaded", device=device))

"""The configurations of the commands."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator, model_validator

from metarl_cli.config.base import Group, Later, Operational, Part, StrictModel


class Job(NamedTuple):
    """How a configuration was composed: the option of each group, and the overrides of the command line; and its place."""

    choices: dict[str, str | None]
    overrides: list[str]
    number: int = 0  # of the job within its sweep
    swept: frozenset[str] = frozenset()  # keys to which the sweep gives several values
    flags: tuple[str, ...] = ()  # of the command line, that say where configurations lie


class Hardware(StrictModel):
    """Where and how the numbers are computed."""

    device: str = Field(
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        examples=["auto", "cpu", "cuda", "cuda:N"],
        description="auto takes a GPU where there is one; without its number N, the jobs of a sweep take turns on the GPUs",
    )
    threads: int = Field(gt=0, description="CPU threads; small tensors are fastest with one")
    patience: float = Field(
        gt=0, le=1e6, description="seconds to wait for another process, of a simulator or of torchrun, before the run fails"
    )


class TrainHardware(Hardware):
    """Where and how a run is trained."""

    compile: bool = Field(description="compile gradients, native dynamics and fitness; needs a C++ compiler")
    profile: bool = Field(description="measure where the time of an iteration goes: a table, and a trace in the run folder")


class TrainLoop(StrictModel):
    """When things happen during meta-training."""

    iterations: int = Field(gt=0, description="meta-iterations")
    eval_every: int = Field(gt=0, description="iterations between evaluations on validation tasks")
    log_every: Annotated[int, Operational()] = Field(gt=0, description="iterations between logged metrics")
    checkpoint_every: Annotated[float, Operational()] = Field(gt=0, description="seconds between checkpoints")
    # runs from before cross-validation have none of these
    folds: int | None = Field(None, ge=3, description="folds of a cross-validation, one run each; none: tasks are drawn")
    fold: int = Field(0, ge=0, description="the fold whose tasks are held out for the test; the next one's are for validation")
    pool: int = Field(250, gt=0, description="tasks of all folds together")

    @model_validator(mode="after")
    def _fold_is_there(self) -> TrainLoop:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold must be below folds ({self.folds}); folds are numbered from 0")
        if self.folds is not None and self.pool < self.folds:
            raise ValueError(f"pool must have a task for each of the {self.folds} folds")
        return self


class Evaluation(StrictModel):
    """How adaptation is measured on tasks never trained on."""

    tasks: int = Field(gt=0, description="tasks evaluated")
    episodes: int = Field(gt=0, description="full episodes per task and adaptation step")
    steps: int | None = Field(
        gt=0, description="adaptation steps: gradient steps, supports or demonstrations; none for one that takes none"
    )


def _several(value: object) -> object:
    """Return one folder as a list of one."""
    return [value] if isinstance(value, str) else value


Folders = Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_several)]
# of the test results that the normalised score is computed with
ROBUST = "run folder, or those of several seeds, of a policy that cannot know the task; none: measured levels"
Packages = list[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]]
PACKAGES = "modules that an environment's configuration may have imported; well-known ones need not be named"
ORACLE = "run folder, or those of several seeds, of a policy that is given the task; none: the optimum, or measured levels"


class TrainConfig(StrictModel):
    """``metarl train``."""

    seed: int = Field(ge=0, description="the one seed every random stream derives from")
    tasks_seed: int = Field(ge=0, description="seed of the held-out tasks; runs with the same one share their tests")
    run: Annotated[str | None, Operational()] = Field(
        description="run folder to continue, or where the new run goes; none: named by the config"
    )
    outputs: Annotated[str, Operational()] = Field(description="where new run folders go")
    aggregate: Annotated[bool, Operational()] = Field(
        description="keep the mean over the seeds of a configuration current for TensorBoard, in seeds/ beside the runs"
    )
    robust: Annotated[Folders, Operational()] = Field(description=ROBUST)
    oracle: Annotated[Folders, Operational()] = Field(description=ORACLE)
    packages: Annotated[Packages, Operational()] = Field(description=PACKAGES)
    demonstrator: Annotated[str | None, Later()] = Field(
        None, min_length=1, description="run folder of a policy that is given the task, and demonstrates it; none: the family"
    )
    train: TrainLoop
    eval: Evaluation = Field(description="on validation tasks, during training; chooses the best checkpoint")
    test: Evaluation = Field(description="on test and out-of-distribution tasks, at the end")
    algo: Annotated[Group, Part("algo")]
    learner: Annotated[Group | None, Part("learner")] = None  # an algorithm without a learner removes the group
    env: Annotated[Group, Part("env")]
    hardware: Annotated[TrainHardware, Operational()]


class Pruning(StrictModel):
    """When a trial of a search ends early: its best score is behind those that others had at the same point."""

    quantile: float = Field(
        ge=0, le=1, description="the quantile of the others' best scores that it has to reach: 0.5, the median"
    )
    trials: int = Field(gt=0, description="trials that have to finish before one can end early")
    warmup: float = Field(ge=0, le=1, description="the share of a trial in which it does not end early")


SEEDS = 1000  # from the first seed of a search to the first of its report: the two share none


class TuneConfig(TrainConfig):
    """``metarl tune``: what ``metarl train`` has, and how its values are searched for."""

    study: Annotated[str | None, Operational()] = Field(
        description="folder of the study to go on with, or where the new one goes; none: named by the config"
    )
    trials: Annotated[int, Operational()] = Field(
        gt=0, le=10_000, description="trials of the study, those made before included"
    )
    seeds: int = Field(
        gt=0, le=SEEDS, description="runs of a trial, with the seeds seed, seed + 1, ...; its score is their mean"
    )
    report_seeds: Annotated[int, Operational()] = Field(
        ge=0, le=SEEDS, description=f"runs of the best trial and of the defaults at the end, with the seeds seed + {SEEDS}, ..."
    )
    sampler: Literal["tpe", "random"] = Field(description="Optuna's tree-structured Parzen estimator, or random search")
    prune: Pruning | None = Field(description="when a trial ends early; none: never")
    ranges: dict[str, str] = Field(
        description="what is searched, in Hydra's words: interval, tag(log, interval), range, choice"
    )


class TestConfig(StrictModel):
    """``metarl test``."""

    run: str = Field(description="the run folder to test, or zoo:NAME")
    split: Literal["validation", "test", "ood"] = Field(description="which held-out tasks")
    tasks: int | None = Field(gt=0, description="tasks evaluated; none: as at the end of training")
    episodes: int | None = Field(gt=0, description="episodes per task and step; none: as at the end of training")
    steps: int | None = Field(gt=0, description="gradient steps, supports or demonstrations; none: as in training")
    trial: int | None = Field(gt=0, description="episodes of a trial, for algorithms with memory; none: as in training")
    robust: Folders = Field(description=ROBUST)
    oracle: Folders = Field(description=ORACLE)
    packages: Packages = Field(description=PACKAGES)
    probe: Literal["support"] | None = Field(description="support: what the adaptation uses of its support; none: a plain test")
    checkpoint: Literal["best", "last"] = Field(description="the weights chosen on validation tasks, or the latest")
    hardware: Hardware


class AdaptConfig(StrictModel):
    """``metarl adapt``."""

    run: str = Field(description="the run folder to adapt from, or zoo:NAME")
    task: dict[str, float | bool | str] = Field(description="task parameters, e.g. task.gravity=20; nominal ones elsewhere")
    steps: int | None = Field(gt=0, description="gradient steps, supports or demonstrations; none: as in training")
    trial: int | None = Field(gt=0, description="episodes of a trial, for algorithms with memory; none: as in training")
    episodes: int = Field(gt=0, description="full episodes measured before, at each step and after")
    demonstrations: str | None = Field(description="file of demonstrations of one's own; none: the family's demonstrator")
    seed: int = Field(ge=0, description="seed of the support episodes and of the measuring ones")
    checkpoint: Literal["best", "last"] = Field(description="the weights chosen on validation tasks, or the latest")
    gif: bool = Field(description="record an animated GIF before and after")
    packages: Packages = Field(description=PACKAGES)
    out: str | None = Field(description="folder for the adapted policy; none: inside the run folder")
    hardware: Hardware

    @field_validator("task", mode="before")
    @classmethod
    def _parameters_of_a_mix(cls, task: object) -> object:
        """Flatten ``{family: {name: value}}`` to ``{"family.name": value}``, the parameters of one family in a mix."""
        if not isinstance(task, dict):
            return task
        flat: dict[str, object] = {}
        for name, value in task.items():
            group = cls._parameters_of_a_mix(value)
            flat |= {f"{name}.{key}": v for key, v in group.items()} if isinstance(group, dict) else {name: value}
        return flat

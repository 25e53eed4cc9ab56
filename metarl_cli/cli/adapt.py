"""``metarl adapt``: adapt a saved run to one task you name; prints before, each step and after, keeps the policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from metarl_cli.config.models import AdaptConfig
from metarl_cli.errors import UserError
from metarl_cli.evaluation.evaluator import Evaluator, by_gradient
from metarl_cli.evaluation.report import empty_table, figure, label, table
from metarl_cli.evaluation.statistics import Interval, iqm_interval
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Adaptation, Family, GradientAlgorithm, State, Task, TrialAlgorithm
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import build
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.results import load_weights
from metarl_cli.runs.tracking import Tracker, gif, png, wide_console
from metarl_cli.seeding import torch_rng


def run(config: AdaptConfig) -> float:
    """Adapt to the task; returns the IQM of the returns after the last step, or a trial's mean return of an episode.

    Raises:
        UserError: for a parameter the family does not have, or a run that cannot be read.
    """
    folder = RunFolder(config.run)
    trained = folder.config(config.hardware)
    parts = build(trained)
    load_weights(folder, parts, config.checkpoint)
    try:
        task = parts.family.named_task(config.task)
    except ValueError as error:
        raise UserError(str(error)) from error
    steps = config.steps or trained.test.steps
    name = "-".join(f"{key}={value:g}" for key, value in config.task.items()) or "nominal"
    out = Path(config.out) if config.out else folder.path / "adapted" / name
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {out}: {error.strerror}") from error

    console = wide_console()
    if isinstance(parts.algorithm, TrialAlgorithm):
        if config.steps:
            parts.algorithm.episodes = config.steps + 1
        return _trial(parts.family, task, parts.algorithm, config, out, console, f"{folder.path.name} on {name}")
    algorithm = by_gradient(parts.algorithm)
    shown = empty_table(f"{folder.path.name} on {name}", trial=False)
    rng = torch_rng(config.seed, "adapt", "support", device=parts.device)
    adaptations = list(algorithm.adapt(task, steps, rng))
    points: list[Interval] = []
    for adaptation in adaptations:
        points.append(_measure(parts.family, task, algorithm, adaptation, config))
        row = (label(adaptation.step, trial=False), str(adaptation.gradient_steps), str(adaptation.env_steps), str(points[-1]))
        shown.add_row(*row, style="bold" if adaptation.step in (0, steps) else "")
    console.print(shown)

    policy = {
        "params": {k: v[0].cpu().clone() for k, v in adaptations[-1].params.items()},
        "task": {k: v[0].tolist() for k, v in task.items()},
        "returns": [point._asdict() for point in points],
        "gradient_steps": adaptations[-1].gradient_steps,
        "adaptation_env_steps": adaptations[-1].env_steps,
    }
    checkpoint.save(out / "policy.pt", policy)
    console.print(f"adapted policy: {out / 'policy.pt'}", soft_wrap=True)
    if config.gif:
        tracker = Tracker(out, {"task": policy["task"], "steps": steps}, resume_step=0)
        for when, adaptation in (("before", adaptations[0]), ("after", adaptations[-1])):
            frames = film(parts.family, task, algorithm, adaptation, config.seed)
            checkpoint.write_whole(out / f"{when}.gif", gif(frames))
            tracker.animation(f"episode/{when}", frames, algorithm.env_steps)
            console.print(f"episode {when}: {out / when}.gif", soft_wrap=True)
        tracker.close(finished=True)
    return points[-1].value


def _trial(
    family: Family, task: Task, algorithm: TrialAlgorithm, config: AdaptConfig, out: Path, console: Console, title: str
) -> float:
    """Trials on the task: prints and draws the return of each episode; keeps one trial, its path and the memory after it."""
    report = Evaluator(family, task, config.episodes, config.seed, "adapt").report(algorithm, 0)
    console.print(table(report, title))
    played = play(family, task, algorithm, config.seed, drawing=config.gif)
    if played.places:
        console.print("the path of one greedy trial:" if report.sampled else "the path of one trial:")
        for k in report.curve.steps:
            console.print(f"episode {k + 1}: {' '.join(played.places[k])}  return {played.returns[k]:.2f}", soft_wrap=True)

    named = {k: v[0].tolist() for k, v in task.items()}
    kept = {
        "task": named,
        "returns": [point._asdict() for point in report.curve.points],
        "sampled": report.sampled and [point._asdict() for point in report.sampled.points],
        "played": {"returns": played.returns, "places": played.places},
    }
    checkpoint.write_whole(out / "trial.json", (json.dumps(kept, indent=1) + "\n").encode())
    checkpoint.write_whole(out / "trial.png", png(figure(report, title)))
    console.print(f"returns: {out / 'trial.json'} and .png", soft_wrap=True)
    if algorithm.learns:
        policy = {"weights": saved(algorithm.weights()), "memory": saved(played.memory), "task": named}
        checkpoint.save(out / "policy.pt", {**policy, "returns": played.returns, "episodes": algorithm.episodes})
        console.print(f"policy and its memory after the trial: {out / 'policy.pt'}", soft_wrap=True)
    if config.gif:
        checkpoint.write_whole(out / "trial.gif", gif(played.frames))
        console.print(f"trial: {out / 'trial.gif'}", soft_wrap=True)
    return report.curve.score


def _measure(family: Family, task: Task, algorithm: GradientAlgorithm, adaptation: Adaptation, config: AdaptConfig) -> Interval:
    rng = torch_rng(config.seed, "adapt", "episodes", device=next(iter(task.values())).device)
    returns, _ = run_episodes(family, task, lambda obs: algorithm.act(adaptation.params, obs), config.episodes, rng)
    return iqm_interval(returns.T.cpu().numpy())


@torch.no_grad()
def film(
    family: Family, task: Task, algorithm: GradientAlgorithm, adaptation: Adaptation, seed: int, longest: int = 200
) -> list[Image.Image]:
    """The frames of one greedy episode, at most ``longest`` of them."""
    rng = torch_rng(seed, "adapt", "film", device=next(iter(task.values())).device)
    env = family.make(task, 1, rng, render=True)
    frames: list[Image.Image] = []
    while len(frames) < longest:
        frames.append(env.render())
        step = env.step(algorithm.act(adaptation.params, env.obs))
        if bool(step.terminated[0, 0] | step.truncated[0, 0]):
            break
    return frames


class Played(NamedTuple):
    """One trial in one environment."""

    returns: list[float]  # of each episode
    places: list[list[str]]  # of each episode, its start and where each step led; empty where a family cannot say
    memory: State  # after the last episode
    frames: list[Image.Image]


@torch.no_grad()
def play(family: Family, task: Task, algorithm: TrialAlgorithm, seed: int, drawing: bool = False, longest: int = 400) -> Played:
    """One greedy trial on one task (M=1), filmed if ``drawing``: at most ``longest`` frames."""
    device = next(iter(task.values())).device
    env = family.make(task, 1, torch_rng(seed, "adapt", "film", device=device), drawing)
    memory = algorithm.begin(task, 1, torch_rng(seed, "adapt", "trial", device=device))
    describe: Callable[[Tensor], str] | None = getattr(family, "describe", None)
    returns: list[float] = []
    places: list[list[str]] = []
    frames: list[Image.Image] = []
    for _ in range(algorithm.episodes):
        returns.append(0.0)
        if describe:
            places.append([describe(env.obs[0, 0])])
        ended = False
        while not ended:
            if drawing and len(frames) < longest:
                frames.append(env.render())
            obs = env.obs
            action, memory = algorithm.choose(memory, obs)
            step = env.step(action)
            memory = algorithm.observe(memory, obs, action, step)
            returns[-1] += float(step.reward)
            if describe:
                places[-1].append(describe(step.next_obs[0, 0]))
            ended = bool(step.terminated | step.truncated)
    return Played(returns, places, memory, frames)


def saved(memory: Any) -> Any:
    """A memory as a checkpoint may hold it: on the CPU, without its generator of random numbers."""
    if isinstance(memory, dict):
        return {k: saved(v) for k, v in memory.items() if not isinstance(v, torch.Generator)}
    if isinstance(memory, list | tuple):
        return [saved(item) for item in memory]
    return memory.detach().cpu().clone() if isinstance(memory, Tensor) else memory  # a clone: views bring their whole storage

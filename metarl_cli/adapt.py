"""``metarl adapt``: adapt a saved run to one task you name; prints before, each step and after, keeps the policy."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from metarl_cli import checkpoint
from metarl_cli.building import AdaptConfig
from metarl_cli.evaluate import Evaluator, by_gradient, empty_table, episode_returns, label, load_weights
from metarl_cli.run_folder import RunFolder, build
from metarl_cli.seeding import torch_rng
from metarl_cli.statistics import Interval, iqm_interval
from metarl_cli.tracking import Tracker, gif, wide_console
from metarl_cli.types import Adaptation, Family, GradientAlgorithm, Task, TrialAlgorithm, UserError


def run(config: AdaptConfig) -> float:
    """Adapt to the task; returns the IQM of the returns after the last step, or of a trial's last episode.

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
    """Trials on the task: prints and keeps the return of each episode; the film shows the first steps of one trial."""
    evaluator = Evaluator(family, task, config.episodes, config.seed, "adapt")
    curve = evaluator.curve(algorithm, 0)
    shown = empty_table(title, trial=True)
    for k, step in enumerate(curve.steps):
        shown.add_row(label(step, trial=True), "0", str(curve.env_steps[k]), str(curve.points[k]))
    console.print(shown)
    kept = {"task": {k: v[0].tolist() for k, v in task.items()}, "returns": [point._asdict() for point in curve.points]}
    checkpoint.write_whole(out / "trial.json", (json.dumps(kept, indent=1) + "\n").encode())
    console.print(f"returns: {out / 'trial.json'}", soft_wrap=True)
    if config.gif:
        frames = film_trial(family, task, algorithm, config.seed)
        checkpoint.write_whole(out / "trial.gif", gif(frames))
        console.print(f"trial: {out / 'trial.gif'}", soft_wrap=True)
    return curve.points[-1].value


def _measure(family: Family, task: Task, algorithm: GradientAlgorithm, adaptation: Adaptation, config: AdaptConfig) -> Interval:
    rng = torch_rng(config.seed, "adapt", "episodes", device=next(iter(task.values())).device)
    returns = episode_returns(family, task, lambda obs: algorithm.act(adaptation.params, obs), config.episodes, rng)
    return iqm_interval(returns.T.cpu().numpy())


@torch.no_grad()
def film(
    family: Family, task: Task, algorithm: GradientAlgorithm, adaptation: Adaptation, seed: int, longest: int = 200
) -> list[Image.Image]:
    """The frames of one greedy episode, at most ``longest`` of them."""
    rng = torch_rng(seed, "adapt", "film", device=next(iter(task.values())).device)
    env = family.make(task, 1, rng, drawing=True)
    frames: list[Image.Image] = []
    while len(frames) < longest:
        frames.append(env.render())
        step = env.step(algorithm.act(adaptation.params, env.obs))
        if bool(step.terminated[0, 0] | step.truncated[0, 0]):
            break
    return frames


@torch.no_grad()
def film_trial(family: Family, task: Task, algorithm: TrialAlgorithm, seed: int, longest: int = 400) -> list[Image.Image]:
    """The frames of one trial, at most ``longest`` of them."""
    device = next(iter(task.values())).device
    env = family.make(task, 1, torch_rng(seed, "adapt", "film", device=device), drawing=True)
    memory = algorithm.begin(task, 1, torch_rng(seed, "adapt", "trial", device=device))
    frames: list[Image.Image] = []
    ended = 0
    while len(frames) < longest and ended < algorithm.episodes:
        obs = env.obs
        frames.append(env.render())
        action, memory = algorithm.choose(memory, obs)
        step = env.step(action)
        memory = algorithm.observe(memory, obs, action, step)
        ended += int(step.terminated[0, 0] | step.truncated[0, 0])
    return frames

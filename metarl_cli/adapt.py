"""``metarl adapt``: adapt a saved run to one task you name; prints before, each step and after, keeps the policy."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from metarl_cli import checkpoint
from metarl_cli.building import AdaptConfig
from metarl_cli.evaluate import episode_returns, load_weights
from metarl_cli.run_folder import RunFolder, build
from metarl_cli.seeding import torch_rng
from metarl_cli.statistics import Interval, iqm_interval
from metarl_cli.tracking import Tracker, gif
from metarl_cli.types import Adaptation, Algorithm, Family, Task, UserError


def run(config: AdaptConfig) -> float:
    """Adapt to the task; returns the IQM of the returns after the last step.

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

    console = Console(highlight=False)
    shown = Table(title=f"{folder.path.name} on {name}", title_justify="left", title_style="bold")
    for heading in ("", "gradient steps", "env steps", "return: IQM [95 %]"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    rng = torch_rng(config.seed, "adapt", "support", device=parts.device)
    adaptations = list(parts.algorithm.adapt(task, steps, rng))
    points: list[Interval] = []
    for adaptation in adaptations:
        points.append(_measure(parts.family, task, parts.algorithm, adaptation, config))
        label = "before adaptation" if adaptation.step == 0 else f"after step {adaptation.step}"
        row = (label, str(adaptation.gradient_steps), str(adaptation.env_steps), str(points[-1]))
        shown.add_row(*row, style="bold" if adaptation.step in (0, steps) else "")
    console.print(shown)

    policy = {
        "params": {k: v[0].cpu().clone() for k, v in adaptations[-1].params.items()},
        "task": {k: float(v) for k, v in task.items()},
        "returns": [point._asdict() for point in points],
        "gradient_steps": adaptations[-1].gradient_steps,
        "adaptation_env_steps": adaptations[-1].env_steps,
    }
    checkpoint.save(out / "policy.pt", policy)
    console.print(f"adapted policy: {out / 'policy.pt'}", soft_wrap=True)
    if config.gif:
        tracker = Tracker(out, {"task": policy["task"], "steps": steps}, resume_step=0)
        for label, adaptation in (("before", adaptations[0]), ("after", adaptations[-1])):
            frames = film(parts.family, task, parts.algorithm, adaptation, config.seed)
            checkpoint.write_whole(out / f"{label}.gif", gif(frames))
            tracker.animation(f"episode/{label}", frames, parts.algorithm.env_steps)
            console.print(f"episode {label}: {out / label}.gif", soft_wrap=True)
        tracker.close(finished=True)
    return points[-1].value


def _measure(family: Family, task: Task, algorithm: Algorithm, adaptation: Adaptation, config: AdaptConfig) -> Interval:
    rng = torch_rng(config.seed, "adapt", "episodes", device=next(iter(task.values())).device)
    returns = episode_returns(family, task, lambda obs: algorithm.act(adaptation.params, obs), config.episodes, rng)
    return iqm_interval(returns.T.cpu().numpy())


@torch.no_grad()
def film(
    family: Family, task: Task, algorithm: Algorithm, adaptation: Adaptation, seed: int, longest: int = 200
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

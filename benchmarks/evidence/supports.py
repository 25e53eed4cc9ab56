"""What the adaptation of each method uses: its return on supports that are changed in one respect, over seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from matrix import FAMILIES, RESULTS, Job, jobs
from scores import ORACLES, ROBUSTS

import metarl_cli as metarl
from metarl_cli.comparison.tables import number, text
from metarl_cli.errors import UserError
from metarl_cli.evaluation.statistics import over_seeds

PROBES = RESULTS.parent / "probes"
MARKER = re.compile(r"(<!-- probes: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
Kept = dict[str, dict[str, dict[str, Any]]]  # method -> support -> {"mean": [S], "share": [S]}


def finished(job: Job, outputs: Path) -> bool:
    """Whether the run of a job is there, and finished."""
    manifest = job.folder(outputs) / "run.json"
    return manifest.exists() and json.loads(manifest.read_text())["status"] == "finished"


def probe(family: str, methods: list[str] | None, seeds: range, outputs: Path) -> None:
    """Probe the runs of a family's methods that adapt, and keep the means over tasks."""
    there = [job for job in jobs([family], None, seeds) if finished(job, outputs)]
    lines = {"robust": ROBUSTS, "oracle": ORACLES}
    ends = {end: [str(job.folder(outputs)) for job in there if job.method in names] or None for end, names in lines.items()}
    path = PROBES / f"{family}.json"
    kept: Kept = json.loads(path.read_text()) if path.exists() else {}
    for method in FAMILIES[family]["methods"]:
        chosen = [job for job in there if job.method == method and (methods is None or method in methods)]
        results = [found for job in chosen if (found := effects(job.folder(outputs), ends)) is not None]
        if results:
            common = [support for support in results[0] if all(support in found for found in results)]
            kept[method] = {support: shares([found[support] for found in results]) for support in common}
            PROBES.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"probed: {family}, {method}, {len(results)} seeds", flush=True)


def effects(folder: Path, ends: dict[str, list[str] | None]) -> dict[str, Any] | None:
    """Return the effect of each support on a run; None for an algorithm that does not adapt."""
    try:
        found = metarl.load(folder).probe(**ends)
    except UserError as error:
        print(f"not probed: {folder}: {error}")
        return None
    return {effect["support"]: effect for effect in found["effects"]}


def shares(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, for each run, the mean return on a support, and its difference to the own support as a share of the range."""
    ranges = [effect["share_of_range"] for effect in found]
    return {
        "mean": [round(effect["mean"]["value"], 4) for effect in found],
        "share": [each and round(each["value"], 4) for each in ranges],
    }


def table(family: str) -> str:
    """A row for each method, a column for each support: the mean return on the own one, what the others change of the range."""
    kept: Kept = json.loads((PROBES / f"{family}.json").read_text())
    kept = {method: kept[method] for method in FAMILIES[family]["methods"] if method in kept}
    own, *others = dict.fromkeys(support for found in kept.values() for support in found)
    lines = [f"| {' | '.join(['algorithm', 'seeds', own, *others])} |", "|" + "---|" * (3 + len(others))]
    for method, found in kept.items():
        cells = [f"`{method}`", str(len(found[own]["mean"])), text(own, over_seeds(found[own]["mean"]))]
        lines.append(f"| {' | '.join(cells + [cell(found.get(support)) for support in others])} |")
    return "\n".join(lines)


def cell(found: dict[str, Any] | None) -> str:
    """The share of the range that a support costs, or the return where there is no range."""
    if found is None:
        return "-"
    if None in found["share"]:
        return number(float(np.mean(found["mean"])))
    return f"{round(float(np.mean(found['share'])), 2) + 0.0:+.0%}"


def fill(page: str) -> str:
    """The page with the tables that its markers name."""
    return MARKER.sub(lambda match: match[1] + table(match[2]) + match[3], page)

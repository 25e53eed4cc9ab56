"""``metarl export``: an adapted policy as files that others serve: ONNX, torch.export, and a contract."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from metarl_cli.cli.terminal import waiting
from metarl_cli.config.messages import did_you_mean
from metarl_cli.errors import UserError
from metarl_cli.progress import wide_console

HELP = """\
metarl export: an adapted policy as files that others serve without metarl.

usage: metarl export FILE_OR_FOLDER [out=DIR] [format=onnx,pt2] [adaptation=true]

FILE_OR_FOLDER is what metarl adapt wrote, policy.pt or its folder; or a run folder (or zoo:NAME), for its policy on the nominal
task before any adaptation.

  out=DIR           where to write; the folder exported, beside the policy or in the run
  format=onnx,pt2   files to write; both
  adaptation=true   of a run: adaptation.* beside policy.*, with which a device adapts alone, and weights.npz to begin with;
                    of algorithms that adapt by gradient steps, or infer the task

It writes policy.onnx (needs pip install onnx onnxscript onnxruntime), policy.pt2 (of torch.export) and contract.json: names,
shapes and types of what goes in and comes out, the bounds of actions, what a memory starts from and what is fed back. Every
file is run beside the policy on 1,000 observations first; one that acts differently is not written.

examples
  metarl export outputs/RUN/adapted/NAME
  metarl export outputs/RUN/adapted/NAME/policy.pt format=pt2 out=served
  python examples/serve_policy.py served             a server, with numpy and onnxruntime alone
  metarl export zoo:maml_dqn-cartpole_family adaptation=true out=served
  python examples/adapt_policy.py served             adapts to a CartPole, with numpy, onnxruntime and gymnasium alone

From Python: metarl.load(PATH, device="cpu").export("served"), or metarl.load(RUN, device="cpu").export_adaptation("served").
"""
KEYS = ("out", "format", "adaptation")
SWITCH = ("true", "false")


def run(words: list[str]) -> int:
    """Export a policy; returns the exit code.

    Raises:
        UserError: for a word that is neither a path nor one of the keys, what is no policy, or one that cannot be exported.
    """
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    path, options = parse(words)
    formats = options["format"].split(",") if "format" in options else []
    with waiting("exporting ..."):
        from metarl_cli import load
        from metarl_cli.runs.export import CONTRACT, check_formats, export
        from metarl_cli.runs.run import Run

        check_formats(formats)
        loaded = load(path, device="cpu")
        beside = loaded.path if isinstance(loaded, Run) else path if path.is_dir() else path.parent
        out = Path(options["out"]) if "out" in options else beside / "exported"
        if options.get("adaptation") == "true":
            if not isinstance(loaded, Run):
                raise UserError(f"{path} is an adapted policy; adaptation=true is of a run")
            contract = loaded.export_adaptation(out, formats)
        else:
            contract = export(loaded.before_adaptation() if isinstance(loaded, Run) else loaded, out, formats)
    console = wide_console()
    for file, about in contract["files"].items():
        line = f"{out / file}: {about['bytes'] / 1000:,.0f} KB"
        if check := about.get("check"):
            equal = f"{100 * check['equal']:.4g} % of {check['observations']:,} actions equal the policy's"
            line += f"; {equal}{_differences(check)}"
        console.print(Text(line), soft_wrap=True)
    names = [entry["name"] for entry in contract["memory"]]
    memory = f"; memory: {', '.join(names)}" if names else ""
    console.print(Text(f"{out / CONTRACT}: an action is a {contract['action']['kind']}{memory}"), soft_wrap=True)
    return 0


def _differences(check: dict[str, Any]) -> str:
    """Return the largest difference between a file and what it was run beside."""
    largest = f"largest difference {check['largest_difference']:.2g}"
    if "steps" not in check:
        return f", {largest}"
    return f"; weights after {check['steps']} steps change by up to {check['largest_change']:.2g}, {largest}"


def complete(words: list[str]) -> list[str]:
    """Return the keys that are not given yet, for completion."""
    return [f"{key}=" for key in KEYS if not any(word.startswith(f"{key}=") for word in words)]


def parse(words: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Return the path and the options of a command line.

    Raises:
        UserError: for a flag, an unknown key, a key given twice or without a value, or not exactly one path.
    """
    paths, options, problems = list[Path](), dict[str, str](), list[str]()
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            problems.append(f"{word}: no such flag; metarl export takes a path and key=value")
        elif not equals or "/" in key or os.path.exists(word):  # a folder of metarl adapt is named for its task: gravity=20
            paths.append(Path(word))
        elif key not in KEYS:
            problems.append(f"{key}: no such key{did_you_mean(key, KEYS) or '; known: ' + ', '.join(KEYS)}")
        elif key in options:
            problems.append(f"{key}: is given twice")
        elif not value:
            problems.append(f"{key}=: has no value")
        elif key == "adaptation" and value not in SWITCH:
            problems.append(f"adaptation={value}: must be true or false")
        else:
            options[key] = value
    if len(paths) != 1:
        got = f", got {', '.join(map(str, paths))}" if paths else ""
        problems.append(f"metarl export takes one path: of a policy that metarl adapt wrote, or of a run folder{got}")
    if problems:
        raise UserError(*problems)
    return paths[0], options

"""Speed beside peers, one table at a time.

    python benchmarks/speed dqn                    measure a table, print it, write benchmarks/results/dqn.json
    python benchmarks/speed all                    every table, an hour or two
    python benchmarks/speed dqn stepping --quick   two short rounds, to see that it works
    python benchmarks/speed docs                   make the tables of docs/speed.md and the figure from the result files

Contenders are processes of their own, which take turns: round after round each does the same work for some seconds, alone, on
one core. Peers live in virtual environments that are made from benchmarks/peers/*.txt when they are first needed, in the folder
METARL_PEERS (or the user's cache). The load averages in the result show whether the machine did other work meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from pathlib import Path

import machine
import peers
import report
from harness import measure
from rich.console import Console
from rich.table import Table as Grid
from tables import OLD, Table, tables

RESULTS = peers.ROOT / "benchmarks" / "results"
PAGE = peers.ROOT / "docs" / "speed.md"
FIGURE = peers.ROOT / "docs" / "speed_growth.png"
QUICK = (2, 0.2)  # rounds, seconds


def run(word: str, table: Table, args: argparse.Namespace, console: Console) -> report.Record:
    """Measure a table."""
    named = [("device", args.device, "cpu"), ("clock", args.clock, "wall")]
    result: report.Record = {
        "table": word,
        "title": table.title,
        "command": f"python benchmarks/speed {word}"
        + "".join(f" --{name} {value}" for name, value, usual in named if value != usual),
        "date": datetime.date.today().isoformat(),
        "revision": machine.revision(),
        "machine": machine.describe(args.device),
        "load_before": machine.load(),
        "rounds": args.rounds,
        "clock": args.clock,
        "unit": table.unit,
        "milliseconds": table.milliseconds,
        "limit": table.limit,
        "cases": [],
    }
    chosen = [case for case in table.cases if not args.cases or any(text in case.name for text in args.cases)]
    with console.status(table.title) as status:
        for case in chosen:
            found = measure(case, args.rounds, args.seconds, args.device, args.override, status.update)
            result["cases"].append({"name": case.name, "unit": case.unit, "contenders": found})
    result["load_after"] = machine.load()
    return result


def show(result: report.Record, console: Console) -> None:
    """Print a result's table."""
    head, body = report.table(result)
    grid = Grid(*head, title=result["title"])
    for cells in body:
        grid.add_row(*cells)
    console.print(grid)
    for line in report.missing(result):
        console.print(f"not measured: {line}", markup=False, highlight=False)


def make_docs(results: Path) -> None:
    """Make the page's tables and the figure from the result files."""
    PAGE.write_text(report.fill(PAGE.read_text(), results))
    if (growth := results / "growth.json").exists():
        report.draw(json.loads(growth.read_text()), FIGURE)


def main() -> int:
    words = list(tables())
    parser = argparse.ArgumentParser(
        prog="benchmarks/speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help=f"{', '.join(words)}; all; docs")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each contender")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a repetition")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} rounds of {QUICK[1]} s")
    parser.add_argument("--cases", nargs="+", help="only those whose name has one of these texts")
    parser.add_argument(
        "--clock", choices=list(report.CLOCKS), default="wall", help="processor, or path: where other work goes on"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="what torch computes on")
    parser.add_argument("--override", action="append", default=[], help="of metarl's configuration, for all of its contenders")
    parser.add_argument("--revision", default=OLD, help="of metarl, that the table iteration compares with")
    parser.add_argument("--peers", help="folder of the peers' environments, in place of METARL_PEERS")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = QUICK
    if args.peers:
        os.environ["METARL_PEERS"] = args.peers
    known = tables(args.revision)
    if unknown := set(args.tables) - {*words, "all", "docs"}:
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    console, failed = Console(), False
    for word in words if "all" in args.tables else [word for word in words if word in args.tables]:
        if machine.load()[0] > 0.5:
            print(f"other work goes on (load average {machine.load()[0]}): read the ratios alone", file=sys.stderr)
        result = run(word, known[word], args, console)
        show(result, console)
        failed |= any("failed" in contender for case in result["cases"] for contender in case["contenders"])
        name = word if args.device == "cpu" else f"{word}_{args.device}"
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if "docs" in args.tables or "all" in args.tables:
        make_docs(args.results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

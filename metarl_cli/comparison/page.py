"""A report as one web page that needs nothing else: it opens from disk, sorts, filters and prints."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from metarl_cli.comparison.tables import Cell, Table, text
from metarl_cli.errors import visible
from metarl_cli.evaluation.statistics import Interval

CAPTIONS = {
    "learning": "Return on validation tasks after adaptation, along training",
    "adaptation": "Return on the held-out tasks, along adaptation",
    "profile": "Share of the tasks with a return above each level",
    "tasks": "Each task before and after adaptation, a mean over seeds",
    "scores": "Normalised score after adaptation: 0 is the robust policy, 1 the oracle",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1150px; padding: 0 1rem;
  color: #1b1b1b; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem }
th button { all: unset; cursor: pointer; font-weight: 600 } th button:focus-visible { outline: 2px solid #0072b2 }
th[aria-sort=ascending] button::after { content: " \\25b2" } th[aria-sort=descending] button::after { content: " \\25bc" }
tbody tr:hover { background: #f4f7fa } ul { color: #444; font-size: .88rem }
input { font: inherit; padding: .3rem .5rem; width: 20rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(31rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100% } figcaption { font-size: .85rem; color: #444 }
@media print { input, label { display: none } body { margin: 0; max-width: none } h2, figure, tr { break-inside: avoid }
  table { font-size: 7.5pt } th, td { padding: .15rem .3rem } .scroll { overflow: visible } }
"""
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0], place = head.cellIndex;
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[place].dataset.value;
  const order = (a, b) => place ? Number(value(b)) - Number(value(a)) : value(b).localeCompare(value(a));
  body.append(...[...body.rows].sort((a, b) => value(a) === "" ? 1 : value(b) === "" ? -1 : down ? order(a, b) : order(b, a)));
};
document.querySelector("input").oninput = event => {
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("tbody tr"))
    row.hidden = !words.every(word => row.cells[0].textContent.toLowerCase().includes(word));
};
"""


def page(title: str, tables: Sequence[Table], drawn: Sequence[Mapping[str, bytes]], notes: Sequence[str]) -> str:
    """Return a page of HTML.

    Args:
        title: of the page.
        tables: one for each comparison.
        drawn: the figures of each comparison as SVG, by name.
        notes: what a reader has to know of all.
    """
    parts = [_section(table, figures) for table, figures in zip(tables, drawn, strict=True)]
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_html(title)}</title>',
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
            f"<h1>{_html(title)}</h1>",
            '<p><label>Show algorithms with <input type="search" placeholder="maml lr=0.002"></label></p>',
            _list(notes),
            *parts,
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
    )


def _section(table: Table, figures: Mapping[str, bytes]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{_html(name)}</button></th>' for name in table.columns)
    body = "\n".join(f"<tr>{''.join(_cell(*each) for each in zip(table.columns, row, strict=True))}</tr>" for row in table.rows)
    images = "\n".join(
        f'<figure><img alt="{_html(CAPTIONS[name])}" src="data:image/svg+xml;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{_html(CAPTIONS[name])}</figcaption></figure>"
        for name, image in figures.items()
    )
    rows = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    after = f'{_list(table.notes)}<div class="figures">{images}</div>'
    return f'<h2>{_html(table.title)}</h2><div class="scroll">{rows}</div>{after}'


def _cell(column: str, cell: Cell) -> str:
    value = cell.value if isinstance(cell, Interval) else cell
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = ""
    return f'<td data-value="{_html(str(value))}">{_html(text(column, cell))}</td>'


def _list(notes: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_html(note)}</li>' for note in notes)}</ul>" if notes else ""


def _html(words: str) -> str:
    return escape(visible(words))

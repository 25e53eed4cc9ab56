"""Names are data: whatever stands in one, it is shown as it is, and nothing obeys it."""

import html
import io
import json
import re
import shlex

import pytest
from conftest import slow_if, tiny
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text
from ugly import UGLY, obeyed

from metarl_cli.cli import main as cli
from metarl_cli.cli import train as train_command
from metarl_cli.cli.compose import compose_train
from metarl_cli.cli.terminal import print_error
from metarl_cli.config.messages import quoted
from metarl_cli.errors import UserError, visible
from metarl_cli.evaluation.pictures import png
from metarl_cli.evolution.lineage import markdown
from metarl_cli.progress import Plain, listening, report, status
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.naming import file_name

SMALL = ["algo=maml_dqn", *tiny("maml_dqn")]
every_name = pytest.mark.parametrize("name", UGLY.values(), ids=UGLY)


def unwrapped(text):
    return "".join(text.split())


@every_name
def test_a_text_is_shown_in_full_and_nothing_of_it_is_obeyed(name):
    shown = visible(name)
    assert not obeyed(shown)
    assert visible(shown) == shown
    assert shown == name or not name.isprintable()


@every_name
@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_prints_names_as_they_are(name, terminal):
    """As a line, in the cells and the title of a table, and as a Text."""
    file = io.StringIO()
    console = Plain(file=file, force_terminal=terminal, width=2000, color_system=None)
    table = Table(name, title=name)
    table.add_row(name, style="bold")
    for each in (name, table, Text(name)):
        console.print(each)
    out = file.getvalue()
    assert not obeyed(out)
    assert unwrapped(out).count(unwrapped(visible(name))) >= 4 - ("\n" in name)


@every_name
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_names_as_they_are(name, terminal, monkeypatch):
    monkeypatch.setattr("metarl_cli.progress.PLAIN_EVERY", 0.0)
    monkeypatch.setattr(train_command, "PLAIN_EVERY", 0.0)
    file = io.StringIO()
    console = Plain(file=file, force_terminal=terminal, width=2000, color_system=None, legacy_windows=False)
    with status(console, name):
        report(name)
    with train_command.Bar(console, 2, 0) as bar, listening(bar.report):
        report(name)
        bar.progress.refresh()
    assert unwrapped(visible(name)) in unwrapped(file.getvalue())
    allowed = {"\x1b", "\r"} if terminal else set()  # of the display itself
    assert not set(obeyed(file.getvalue())) - allowed
    assert "\x1b]0" not in file.getvalue()


@every_name
def test_errors_show_names_as_they_are(name, capsys):
    print_error(UserError(f"refused {name}: no"), f"job 1 (run={name}): ")
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert not obeyed(err)


@every_name
def test_a_figure_shows_names_as_they_are(name, pictures):
    def drawn(title, **how):
        figure = Figure(figsize=(4, 2))
        axes = figure.subplots()
        axes.plot([1, 100], [0.001, 1000], label=title)
        axes.set_yscale("log")
        figure.suptitle(title, **how)
        axes.set_title(title, **how)
        axes.set_xlabel(title, **how)
        axes.legend()
        for text in axes.get_legend().get_texts():
            text.set(**how)
        return figure

    shown = "\n".join(map(visible, name.split("\n")))
    assert png(drawn(name)) == png(drawn(shown, parse_math=False, usetex=False))


def test_the_numbers_of_a_logarithmic_axis_are_still_set(pictures):
    figure = Figure()
    axes = figure.subplots()
    axes.semilogy([1, 1000])
    plain = io.BytesIO()
    figure.savefig(plain, format="png", dpi=150)
    assert png(figure) == plain.getvalue()


@every_name
def test_a_table_of_markdown_shows_names_as_they_are(name):
    plugin_util = pytest.importorskip("tensorboard.plugin_util")
    shown = plugin_util.markdown_to_safe_html(markdown(["setting", name], [[name, "1"]]))
    assert shown.count("<td") == 2
    assert shown.count("<th") - shown.count("<thead") == 2
    inside = shown.replace("<table>", "").replace("</table>", "")
    for tag in ("<a", "<img", "<strong", "<em", "<code"):
        assert tag not in inside
    text = html.unescape(re.sub(r"<[^>]*>", "", shown))
    assert unwrapped(text).count(unwrapped(visible(name))) == 2


@every_name
def test_a_hint_repeats_the_folder(name):
    """Through the shell and through Hydra."""
    _, command, option = shlex.split(RunFolder(name).command("train"))
    config, _ = compose_train([option])
    assert (command, config.run) == ("train", str(RunFolder(name)))


@every_name
def test_a_name_is_one_file(name, tmp_path):
    (tmp_path / file_name(f"a/{name}")).touch()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["a", "outputs/run-1", "1e3", "null", "TRUE", "-.5", "nan", "a b", "3", "1_000", "x1", "é"])
def test_only_what_needs_quotes_has_them(text):
    assert compose_train([f"run={quoted(text)}"])[0].run == text
    assert (quoted(text) == text) == (text in ("a", "outputs/run-1", "x1"))


@pytest.mark.parametrize("name", [UGLY[key] for key in ("umlaut", "emoji", "hash", "tilde", "shell", "no width")])
def test_a_value_that_can_only_be_a_text_needs_no_quotes(name):
    assert compose_train([f"outputs={name}"])[0].outputs == name


RUN = ("mathematics", "escape", "brackets", "markup", "umlaut", "shell", "hash", "tilde")  # a whole run takes seconds


@pytest.mark.parametrize("name", slow_if({key: UGLY[key] for key in RUN}, lambda key: key != "escape"))
def test_a_run_in_a_folder_of_any_name(name, tmp_path, capsys):
    name = UGLY[name]
    folder = tmp_path / name
    assert cli.main(["train", *SMALL, f"run={quoted(str(folder))}"]) == 0
    assert cli.main(["test", f"run={quoted(str(folder))}", "tasks=2", "episodes=1"]) == 0
    assert cli.main(["adapt", f"run={quoted(str(folder))}", "episodes=1"]) == 0
    out, err = capsys.readouterr()
    assert not obeyed(out + err)
    assert visible(str(folder)) in out
    assert [path.parent for path in tmp_path.rglob("run.json")] == [folder]
    assert (folder / "results" / "test.png").is_file()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_bytes_that_are_no_text_are_refused(capsys):
    assert cli.main(["train", "run=a\udcff"]) == 2
    assert capsys.readouterr().err == "metarl: error: run=a\\udcff: is no UTF-8\n"

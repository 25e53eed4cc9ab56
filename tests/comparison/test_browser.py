"""The web page of a report in headless Chromium: it draws, sorts, filters and prints."""

import base64
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from test_report import outputs, trained  # noqa: F401  # fixtures

from metarl_cli.comparison.report import report, write

screenshot = pytest.importorskip("screenshot", reason="no websockets")
# slow: each test starts a browser, where there is one
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")]

NAMES = "[...document.querySelectorAll('tbody tr')].filter(row => row.offsetParent).map(row => row.cells[0].textContent)"
SORTED = "[...document.querySelectorAll('th')].map(head => head.getAttribute('aria-sort'))"


@pytest.fixture(scope="module")
def found(outputs):  # noqa: F811
    return report([outputs])


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    """The page, open; it keeps the errors of its scripts."""
    folder = tmp_path_factory.mktemp("page")
    write(found, folder, ["html"], "A report")
    with screenshot.opened(1200, 900) as opened:
        opened.ask("Page.enable")
        opened.ask(
            "Page.addScriptToEvaluateOnNewDocument", source="window.wrong = []; onerror = text => { wrong.push(text); };"
        )
        opened.ask("Page.navigate", url=(folder / "report.html").as_uri())
        deadline = time.monotonic() + 30
        while opened.run("document.readyState") != "complete" or "report" not in opened.run("location.href"):
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.1)
        yield opened


def values(found, column):
    place = found.tables[0].columns.index(column)
    return {row[0]: getattr(row[place], "value", row[place]) for row in found.tables[0].rows}


def test_it_draws(page, found):
    assert page.run("document.querySelector('h1').textContent") == "A report"
    assert page.run(NAMES) == [row[0] for row in found.tables[0].rows]
    sizes = page.run("[...document.images].map(image => [image.complete, image.naturalWidth, image.clientWidth])")
    assert len(sizes) == 4
    assert all(complete and natural > 100 and shown > 100 for complete, natural, shown in sizes)
    picture = np.asarray(Image.open(io.BytesIO(page.picture())).convert("L"))
    assert picture.shape == (900, 1200)
    assert 0.005 < (picture < 128).mean() < 0.5, "dark letters and lines on a light page"


@pytest.mark.parametrize("column", ["after", "algorithm"])
def test_it_sorts(column, page, found):
    click = f"[...document.querySelectorAll('th button')].find(each => each.textContent === '{column}').click()"
    order = sorted((shown_by := values(found, column)), key=shown_by.get)
    for direction in ("descending", "ascending"):
        page.run(click)
        shown = page.run(NAMES)
        assert [shown_by[name] for name in shown] == sorted(shown_by.values(), reverse=direction == "descending")
        assert set(shown) == set(order)
        assert [each for each in page.run(SORTED) if each] == [direction]


def test_it_filters(page, found):
    def typed(words):
        page.run(
            f"(box => {{ box.value = '{words}'; box.dispatchEvent(new Event('input')); }})(document.querySelector('input'))"
        )
        return set(page.run(NAMES))

    everything = typed("")
    assert everything == {row[0] for row in found.tables[0].rows}
    assert typed("MAML") == {"maml_dqn"}
    assert typed("dqn o") == {name for name in everything if "o" in name}
    assert typed("nothing like it") == set()
    assert typed("") == everything


def test_it_prints(page):
    page.ask("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.querySelector('input')).display") == "none"
    page.ask("Emulation.setEmulatedMedia", media="")
    assert page.run("getComputedStyle(document.querySelector('input')).display") != "none"
    printed = base64.b64decode(page.ask("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 10_000


def test_nothing_fails_and_nothing_else_is_loaded(page):
    page.run("document.querySelector('th button').click()")
    assert page.run("wrong") == []
    loaded = "performance.getEntriesByType('resource').map(each => each.name).filter(name => !name.startsWith('data:'))"
    assert page.run(loaded) == []

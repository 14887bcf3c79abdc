"""The pages in a headless Chromium: drawn without errors or requests, readable on a phone, with zoom and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from browser import opened, wait_for
from jepamba.cli import main
from jepamba.report.html import write_report
from test_report import write_run
from test_study_report import longer_study

pytestmark = pytest.mark.slow


def run_page(folder: Path) -> Path:
    return write_report(write_run(folder / "a-run-with-a-name-that-is-quite-long-and-has-no-space-in-it-at-all"))


def compare_page(folder: Path) -> Path:
    runs = [write_run(folder / f"run-with-a-long-name-{index}", finished=index % 2 == 0) for index in range(8)]
    assert main(["compare", *map(str, runs), "-o", str(folder / "page.html")]) == 0
    return folder / "page.html"


def study_page(folder: Path) -> Path:
    assert main(["study", "report", str(longer_study(folder / "study"))]) == 0
    return folder / "study/report.html"


def empty_page(folder: Path) -> Path:
    return write_report(folder)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    ("make", "charts"),
    [(run_page, 5), (compare_page, 3), (study_page, 2), (empty_page, 0)],
    ids=["run", "comparison", "study", "empty folder"],
)
def test_a_page_is_drawn_without_errors_and_fits(
    tmp_path: Path, make: Callable[[Path], Path], charts: int, width: int
) -> None:
    with opened(make(tmp_path), width) as (page, problems):
        canvases = page.locator(".plot canvas")
        assert canvases.count() == page.locator("figure.chart").count() == charts
        for index in range(charts):
            drawn = (
                "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(x => x)"
            )
            assert canvases.nth(index).evaluate(drawn)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("details").evaluate_all("all => all.forEach(item => item.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Text is not cut off either: only tables, code and charts may be wider than their box.
        wide = "all => all.filter(x => x.scrollWidth > x.clientWidth + 1).map(x => x.outerHTML.slice(0, 200))"
        assert page.locator("h1, h2, h3, p, dl, dd, .tile, .card, .charts").evaluate_all(wide) == []
        assert problems == []


def test_a_page_follows_the_width_of_its_window(tmp_path: Path) -> None:
    with opened(run_page(tmp_path), 1280) as (page, problems):
        before = page.locator(".plot canvas").first.bounding_box()
        page.set_viewport_size({"width": 390, "height": 800})
        wait_for(page, "document.querySelector('.plot canvas').getBoundingClientRect().width < 390")
        assert before is not None
        assert before["width"] > 800
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert problems == []


def test_the_cursor_shows_values_and_zooms(tmp_path: Path) -> None:
    with opened(run_page(tmp_path), 1280) as (page, problems):
        over = page.locator(".plot .u-over").first
        values = page.locator(".plot").first.locator(".u-legend .u-value")
        picture = "document.querySelector('.plot canvas').toDataURL()"
        whole = page.evaluate(picture)
        box = over.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] / 2, middle)
        wait_for(page, "document.querySelector('.u-legend .u-value').textContent !== '–'")
        # 40 s of training end at the right; the held-out text was scored at 10, 20 and 30 s.
        assert 19 < float(values.nth(0).inner_text()) < 21
        assert 1.5 < float(values.nth(2).inner_text()) < 2.0
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=5)
        page.mouse.up()
        wait_for(page, f"{picture} !== {whole!r}")
        page.mouse.move(box["x"] + 2, middle)
        wait_for(page, "Number(document.querySelector('.u-legend .u-value').textContent) > 19")
        over.dblclick()
        wait_for(page, f"{picture} === {whole!r}")
        assert problems == []


def test_the_browser_runs_no_other_script(tmp_path: Path) -> None:
    with opened(run_page(tmp_path), 1280) as (page, problems):
        page.evaluate(
            "() => { const script = document.createElement('script'); script.textContent = 'window.foreign = 1';"
            " document.body.append(script); }"
        )
        assert page.evaluate("window.foreign") is None
        assert len(problems) == 1
        assert "Content Security Policy" in problems[0]

"""The page of the cost bench: whole by itself, with every point and no plot without points."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cost_kit import made_up_result

from tolserve.bench.cost.report import page
from tolserve.bench.cost.report.svg import Axis, Series, bars, plot

OUTSIDE = re.compile(r"""(?:src|href|url|import|fetch)\s*[=(]|https?://""")


class Titles(HTMLParser):
    """Headings of figures, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "rect", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h3"]:
            self.figures.append(data)


def titles(html: str) -> list[str]:
    parser = Titles()
    parser.feed(html)
    assert parser.open == []
    return parser.figures


def test_a_full_run_makes_one_small_file_that_loads_nothing(tmp_path: Path) -> None:
    result = made_up_result(predicted=True)
    page.write(result, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert len(text.encode()) < page.MAX_BYTES
    assert not OUTSIDE.search(text), OUTSIDE.search(text)
    assert all(f'<td data-v="{point["name"]}">' in text for point in result["points"])
    assert "some &lt;CPU&gt;" in text and "prefers-color-scheme: dark" in text
    assert len(titles(text)) == 12


def test_what_was_not_measured_is_not_drawn() -> None:
    result = made_up_result()
    assert "Predicted against measured stalls" not in titles(page.render(result))
    result["points"] = [point for point in result["points"] if point["settings"]["engine"] == "tiny"]
    text = page.render(result)
    assert "no base point of the paced engine" in text
    assert titles(text) == ["A step by where its rows are, real engine, this CPU"]
    result["points"] = []
    assert titles(page.render(result)) == []


def test_sentences_have_the_numbers_of_the_base_point_and_of_the_ladder() -> None:
    result = made_up_result()
    by_name = {point["name"]: point for point in result["points"]}
    for sweep in by_name["paced: base"]["sweeps"]:
        sweep["price"]["codes_local"] = {"mean": 0.0312, "low": 0.02, "high": 0.04}
    text = page.render(result)
    assert "+3.1 % [+2.0 %, +4.0 %]" in text and "over 1 Gbit/s" in text


@pytest.mark.parametrize("scale", ["linear", "log", "log2"])
def test_plots_stay_within_their_frame(scale: str) -> None:
    series = [Series(name="a & b", points=[(0.5, 0.01), (64, 90)], intervals=[(-3, 0.5), (80, 1000)])]
    text = plot(series, x=Axis(label="x", scale=scale), y=Axis(label="y", scale=scale))
    assert "a &amp; b" in text
    for x, y in re.findall(r'circle cx="([\d.-]+)" cy="([\d.-]+)"', text):
        assert 0 <= float(x) <= 560 and 0 <= float(y) <= 320


def test_plots_of_nothing_are_empty_and_of_one_point_are_not() -> None:
    assert plot([], x=Axis(label="x"), y=Axis(label="y")) == "" and bars([], ["a"], unit="ms") == ""
    assert "circle" in plot([Series(name="a", points=[(0, 0)])], x=Axis(label="x"), y=Axis(label="y"))
    assert bars([("none", (0.0, 0.0))], ["a", "b"], unit="ms").count("<rect") == 4

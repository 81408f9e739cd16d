"""The HTML page: well formed, needs nothing else, shows the report's numbers; charts put them where they belong."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from report_fakes import report, step

from umcompress.cli import main as cli
from umcompress.documents.expert_load import ExpertLoad, Experts
from umcompress.documents.report import write_report
from umcompress.report.charts import axis, load_chart, scores_chart, sizes_chart
from umcompress.report.html import page

VOID = {"meta", "img", "br"}
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Checks that tags close in order; collects text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def circles(chart: str, style: str) -> list[tuple[float, float]]:
    """Centres of the dots of a series, without its legend."""
    root = ElementTree.fromstring(chart)
    found = [c for c in root.iter(f"{SVG}circle") if style in (c.get("class") or "").split()]
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in found if c.get("r") == "4"]


def test_the_page_holds_the_numbers_and_needs_nothing_else(tmp_path: Path) -> None:
    pictures = {"steps/baseline/samples.png": b"first", "steps/02-channel_prune/samples.png": b"last"}
    found = Page(page(report(), "runs/a", pictures))
    text = " ".join(found.words)
    for number in ("0.960 ±", "0.600 ±", "6.31M", "1.15x", "quickstart on bagel-mini"):
        assert number in text
    links = [value for _, name, value in found.attributes if name in ("src", "href")]
    contents = [base64.b64decode((value or "").removeprefix("data:image/png;base64,")) for value in links]
    assert contents == [b"first", b"last"]
    assert not [tag for tag, _, _ in found.attributes if tag in ("script", "link", "iframe")]
    assert "url(" not in page(report())


def test_what_is_in_a_report_is_text_and_never_markup() -> None:
    wild = report(model="<script>alert(1)</script>", recipe_name=None, command=("a", "<b>&"), notes=('"><img src=x>',))
    found = Page(page(wild))
    assert {tag for tag, _, _ in found.attributes} & {"script", "b"} == set()
    assert not [value for tag, name, value in found.attributes if tag == "img"]
    assert any("<script>alert(1)</script>" in word for word in found.words)


def test_scores_lie_on_their_axis() -> None:
    steps = report().steps
    chart = scores_chart(steps)
    root = ElementTree.fromstring(chart)
    ticks = [
        (float(t.text or ""), float(t.get("y", "")) - 4)
        for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"
    ]
    (low, low_y), (high, high_y) = ticks[0], ticks[-1]
    for style, task in (("s0", "understanding"), ("s1", "generation")):
        dots = circles(chart, style)
        values = [low + (y - low_y) / (high_y - low_y) * (high - low) for _, y in dots]
        assert values == pytest.approx([s.scores[task].value for s in steps], abs=1e-3)
        assert dots == sorted(dots)
    assert low <= min(s.scores["generation"].low for s in steps)
    assert high >= max(s.scores["understanding"].high for s in steps)


def test_lines_come_from_the_step_that_a_step_started_from() -> None:
    steps = [
        step("baseline", None, (0.9, 0.9), 100, (1, 1)), step("01-a", "a", (0.8, 0.8), 90, (1, 1)),
        step("02-b", "b", (0.7, 0.7), 80, (1, 1), after="baseline"),
        step("03-c", "c", (0.6, 0.6), 70, (1, 1), stopped=True),
    ]
    chart = scores_chart(steps)
    dots = circles(chart, "s0")
    lines = re.findall(r'<path class="line s0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', chart)
    ends = [((float(a), float(b)), (float(c), float(d))) for a, b, c, d in lines]
    assert ends == [(dots[0], dots[1]), (dots[0], dots[2])], "none to the step that was undone"
    assert chart.count("hollow") == 2


def test_sizes_are_shares_of_the_baseline() -> None:
    chart = sizes_chart(report().steps)
    dots = circles(chart, "s2")
    top, zero = 14, 300 - 64
    assert [(zero - y) / (zero - top) for _, y in dots] == pytest.approx([1, 5.9 / 6.312, 4.7 / 6.312], abs=1e-3)


def test_nothing_scored_is_no_chart() -> None:
    bare = [report().baseline.model_copy(update={"scores": {}})]
    assert scores_chart(bare) == ""
    Page(page(report(steps=tuple(bare), recipe=None)))


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.71, 0.986), (0.2, 0.95), (0.5, 0.5), (0.0, 0.0), (-0.4, 1.0), (0.931, 0.934), (12, 2388)],
)
def test_axes_are_round_and_hold_the_values(low: float, high: float) -> None:
    ticks = axis(low, high)
    assert 4 <= len(ticks) <= 9
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    pitches = [b - a for a, b in pairwise(ticks)]
    assert pitches == pytest.approx([pitches[0]] * len(pitches))


def test_the_load_of_experts_is_a_cell_each() -> None:
    sites = [
        ExpertLoad(site=f"layers.{index}.mlp", index=index, component="generation", active=2,
                   by_task={"generation": (1.0, 0.25 * index, 0.5, 0.0)})
        for index in (1, 2, 3)
    ]  # fmt: skip
    chart = load_chart(Experts(sites=tuple(sites)))
    cells = [float(c.get("fill-opacity", "")) for c in ElementTree.fromstring(chart).iter(f"{SVG}rect")]
    assert cells == [1.0, 0.25, 0.5, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0, 0.75, 0.5, 0.0]
    last = report().steps[-1].model_copy(update={"experts": Experts(sites=tuple(sites))})
    assert "Share of the tokens" in page(report(steps=(*report().steps[:-1], last)))


def test_the_command_writes_the_page_with_the_runs_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: dict[str, Any] = {}
    for index, made in enumerate((report().baseline, report().result)):
        assert made.samples is not None
        file = tmp_path / "run" / made.samples
        file.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (index, 0, 0)).save(file)
        run[made.name] = file.read_bytes()
    write_report(report(), tmp_path / "run")
    target = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "run"), "--html", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    text = target.read_text(encoding="utf-8")
    for content in run.values():
        assert base64.b64encode(content).decode() in text
    assert cli.main(["report", str(tmp_path / "run"), "--format", "md"]) == 0
    assert "### Scores" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run"), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2

"""The HTML page: well formed, needs nothing else, shows the report's numbers; charts put them where they belong."""

from __future__ import annotations

import base64
import io
import json
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
from umcompress.documents.base import TASKS
from umcompress.documents.expert_load import ExpertLoad, Experts
from umcompress.documents.removed import SiteResult
from umcompress.documents.report import write_report
from umcompress.documents.scores import KindScore, Score, proportion
from umcompress.report.charts import axis, layer_charts, load_chart, score_charts, size_charts
from umcompress.report.html import page
from umcompress.report.lost_answers import lost_answers

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


def texts(chart: str, anchor: str) -> list[tuple[str, float]]:
    """Texts of a chart with their x."""
    root = ElementTree.fromstring(chart)
    found = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == anchor]
    return [(t.text or "", float(t.get("x", ""))) for t in found]


def values(chart: str) -> list[float]:
    """Where the dots lie on the axis of a chart, row by row."""
    (low, low_x), *_, (high, high_x) = [(float(text), x) for text, x in texts(chart, "middle")]
    dots = list(ElementTree.fromstring(chart).iter(f"{SVG}circle"))
    rows = [float(dot.get("cy", "")) for dot in dots]
    assert rows == sorted(rows)
    return [low + (float(dot.get("cx", "")) - low_x) / (high_x - low_x) * (high - low) for dot in dots]


def test_the_page_holds_the_numbers_and_needs_nothing_else(tmp_path: Path) -> None:
    pictures = {"steps/baseline/samples.png": b"first", "steps/02-channel_prune/samples.png": b"last"}
    found = Page(page(report(), "runs/a", pictures))
    text = " ".join(found.words)
    for number in ("0.960", "0.572 to 0.627", "6.31M", "1.15x", "quickstart on bagel-mini"):
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
    charts = dict(score_charts(steps))
    assert list(charts) == [f"{task}: score with 95 % intervals" for task in ("Understanding", "Generation")]
    for task, chart in zip(TASKS, charts.values(), strict=True):
        assert values(chart) == pytest.approx([step.scores[task].value for step in steps], abs=2e-3)
        assert [name for name, _ in texts(chart, "start")] == [step.name for step in steps]
        ends = re.findall(r"\((\S+) to (\S+)\)</title>", chart)
        assert [float(low) for low, _ in ends] == pytest.approx([step.scores[task].low for step in steps], rel=1e-3)


def test_every_evaluation_has_its_chart_and_perplexity_is_what_is_shown() -> None:
    likely = proportion(20, 100)
    shown = KindScore(value=5.0, low=4.0, high=6.0, n=100)
    text = Score(**likely.model_dump(), numbers={"perplexity": shown}, printed="perplexity")
    first = step("baseline", None, (0.9, 0.9), 100, (1, 1))
    first = first.model_copy(update={"evaluations": {"scenes": first.scores, "text": {"understanding": text}}})
    charts = dict(score_charts([first]))
    assert list(charts) == [
        "scenes, understanding: score with 95 % intervals", "scenes, generation: score with 95 % intervals",
        "text, understanding: perplexity with 95 % intervals, lower is better",
    ]  # fmt: skip
    assert values(list(charts.values())[2]) == pytest.approx([5.0])


def test_alternatives_are_a_tree_and_what_was_undone_is_hollow() -> None:
    steps = [
        step("baseline", None, (0.9, 0.9), 100, (1, 1)), step("01-a", "a", (0.8, 0.8), 90, (1, 1)),
        step("02-b", "b", (0.7, 0.7), 80, (1, 1), after="baseline"),
        step("03-c", "c", (0.6, 0.6), 70, (1, 1), after="01-a", stopped=True),
    ]
    chart = score_charts(steps)[0][1]
    names = [name.replace("\N{NO-BREAK SPACE}", " ") for name, _ in texts(chart, "start")]
    assert names == ["baseline", "├ 01-a", "│ └ 03-c (undone)", "└ 02-b"]
    assert values(chart) == pytest.approx([0.9, 0.8, 0.6, 0.7], abs=2e-3) and chart.count("hollow") == 1


def test_sizes_and_speeds_beside_what_less_work_would_give() -> None:
    charts = dict(size_charts(report().steps))
    shares = values(charts["all parameters, as a share of the baseline's"])
    assert shares == pytest.approx([1, 5.9 / 6.312, 4.7 / 6.312], abs=1e-3)
    speed = charts["speed of generation, as a ratio to the baseline: measured, and ideal by work"]
    assert values(speed) == pytest.approx([1.0, 1.0, 1.15], abs=2e-3)
    ideal = [float(text) for text in re.findall(r"<title>ideal: (\S+)</title>", speed)]
    assert ideal == pytest.approx([1.0, 6.312 / 5.9, 6.312 / 4.7], rel=1e-2)


def test_layers_show_similarities_and_what_is_left() -> None:
    sites = (
        SiteResult(site="m.layers.0", unit="block", before=1, after=1, score=0.6),
        SiteResult(site="m.layers.1", unit="block", before=1, after=0, score=0.9),
        SiteResult(site="m.layers.0.mlp", component="shared", unit="channels", before=100, after=25),
    )
    one = report().steps[1].model_copy(update={"sites": sites})
    charts = dict(layer_charts([one]))
    assert list(charts) == ["01-layer_drop: m.layers.* similarity", "01-layer_drop: m.layers.*.mlp shared channels"]
    similar = charts["01-layer_drop: m.layers.* similarity"]
    assert re.findall(r"<title>(layer [^<]*)</title>", similar) == ["layer 0: 0.6", "layer 1: 0.9, dropped"]
    assert similar.count("hollow") == 1
    assert "<title>layer 0: 0.25</title>" in charts["01-layer_drop: m.layers.*.mlp shared channels"]


def test_answers_that_were_lost_are_shown_with_their_pictures(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 3), (9, 8, 7)).save(file, format="PNG")
    told = base64.b64encode(file.getvalue()).decode()
    after = [(True, {}), (False, {"picture": told}), (True, {}), (False, {})]
    before: list[tuple[bool, dict[str, str]]] = [(True, {}), (True, {}), (False, {}), (False, {})]
    for folder, marks in (("00-baseline", before), ("01-layer_drop", after)):
        place = tmp_path / "steps" / folder / "scenes"
        place.mkdir(parents=True)
        rows = [{"question": f"q{n} <i>", "expected": "red", "answer": "blue", "correct": good, **more}
                for n, (good, more) in enumerate(marks)]  # fmt: skip
        (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [one.model_copy(update={"evaluations": {"scenes": one.scores}}) for one in report().steps]
    (lost,) = lost_answers(report(steps=tuple(steps)), tmp_path)
    assert (lost.count, lost.back, lost.of) == (1, 1, 4) and lost.answers[0].question == "q1 <i>"
    found = Page(page(report(), lost=[lost]))
    assert ("img", "src", f"data:image/png;base64,{told}") in found.attributes
    assert "q1 <i>" in " ".join(found.words) and "1 of 4 answers went from right to wrong" in " ".join(found.words)


def test_nothing_scored_is_no_chart() -> None:
    bare = [report().baseline.model_copy(update={"scores": {}})]
    assert score_charts(bare) == []
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
    assert "share of the tokens" in page(report(steps=(*report().steps[:-1], last)))


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
    assert "### Generation" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run"), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2

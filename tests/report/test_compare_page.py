"""Comparisons as page and picture: charts where matplotlib is there, samples by run."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fakes import report

from umcompress.cli.main import main
from umcompress.documents.report import Report, write_report
from umcompress.errors import UsageError
from umcompress.report import compare_page
from umcompress.report.compare import compare
from umcompress.report.compare_plot import figure


def runs(folder: Path) -> list[str]:
    names = []
    for index, one in enumerate((report(), report(recipe_name="other"))):
        names.append(str(folder / f"run{index}"))
        assert one.result.samples is not None
        samples = folder / f"run{index}" / one.result.samples
        samples.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (index, 0, 0)).save(samples)
        write_report(one, folder / f"run{index}")
    return names


def test_page_and_picture_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, target, picture = runs(tmp_path), tmp_path / "c.html", tmp_path / "c.png"
    assert main(["compare", *names, "--html", str(target), "--png", str(picture)]) == 0
    assert capsys.readouterr().out.split() == [str(target), str(picture)]
    text = target.read_text(encoding="utf-8")
    assert "<svg" in text and "<script" not in text and "What the recipes" not in text
    for name in names:
        samples = Path(name) / str(report().result.samples)
        assert base64.b64encode(samples.read_bytes()).decode() in text
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
    assert main(["compare", *names, "--png", str(tmp_path / "no" / "c.png")]) == 2


def test_dots_lie_at_parameters_and_time() -> None:
    """Of a run whose speed is 1.15 the time is 1 / 1.15; what others do not beat is filled."""
    first: Report = report()
    drawn = figure(compare([("a", first), ("b", first)]))
    parameters, time = drawn.axes[2], drawn.axes[3]
    result = first.result
    lines = [np.asarray(line.get_xydata()) for line in parameters.lines]
    places = [tuple(map(float, line[0])) for line in lines if len(line) == 1]
    assert (result.parameters.active["generation"] / 1e6, result.scores["generation"].value) in places
    assert any(np.asarray(line.get_xydata())[0][0] == pytest.approx(1 / 1.15) for line in time.lines)


def test_without_matplotlib_the_page_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare_page, "find_spec", lambda name: None)
    found = compare([("<b>", report()), ("b", report())])
    text = compare_page.page(found)
    assert "umcompress[plots]" in text and "<svg" not in text and "&lt;b&gt;" in text
    with pytest.raises(UsageError, match="matplotlib"):
        compare_page.write_picture(found, tmp_path / "c.png")

"""Pages in a browser: nothing is wider than the window, on a phone and on a desk, and everything is drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_fakes import report

from umcompress.report.html import page
from umcompress.report.pages import markup, rendered
from umcompress.report.table import Table, number_columns, text_column

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MEASURED = """
const seen = [...document.querySelectorAll("svg.own")].filter(one => one.getBoundingClientRect().height > 30).length;
document.title = [document.documentElement.scrollWidth, window.innerWidth, seen].join(" ");
"""


OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu"]


def seen(text: str, script: str, folder: Path, *options: str) -> str:
    """What a script, run at the end of a page, made the page's title."""
    file = folder / "page.html"
    file.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [str(BROWSER), *OPTIONS, *options, f"--user-data-dir={folder}/u", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    return found.group(1)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    wide = report(notes=("a.path.that.is.longer.than.a.phone.is.wide." * 4,), model="m" * 90)
    found = seen(page(wide, "runs/a"), MEASURED, tmp_path, f"--window-size={width},900")
    wanted, window, drawn = map(int, found.split())
    assert wanted <= window, "the page scrolls sideways"
    assert drawn == 7, "two charts of scores, five of sizes and speeds"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_pages_with_drawings_are_dark_in_the_dark_and_fit_paper(tmp_path: Path) -> None:
    """Drawings keep their white ground and black words; a table is no wider than a sheet of A4."""
    cells = tuple(f"+0.0{n} (+0.0 to +0.1)*" for n in range(3))
    table = Table("Sweep", (text_column("cell"), *number_columns("params", "a", "b")), (("a long name " * 4, *cells),))
    drawing = markup("<svg width='80' height='40'></svg>")
    text = rendered("pictures.html", title="t", facts=[], drawings=[drawing] * 4, no_pictures="", tables=[table],
                    strips={"Samples: a": [("unpruned", "data:,")] * 4}, folded=[])  # fmt: skip
    dark = """const at = (name) => getComputedStyle(document.querySelector(name));
      const ground = getComputedStyle(document.documentElement).colorScheme;
      document.title = [matchMedia("(prefers-color-scheme: dark)").matches, ground, at("body").color,
        at(".plot").backgroundColor, at(".plot").color].join("; ");"""
    told, *found = seen(text, dark, tmp_path, "--force-dark-mode").split("; ")
    if told == "true":  # not every browser takes the option
        assert found == ["light dark", "rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(17, 17, 17)"]
    # What is printed has the rules for print; here the window takes them, as wide as the paper between its margins.
    printed = text.replace("@media print", "@media all")
    wide = """document.title = Math.max(...[...document.querySelectorAll("table, figure")].map((one) =>
      one.getBoundingClientRect().right)) <= innerWidth;"""
    assert seen(printed, wide, tmp_path, "--window-size=718,900") == "true"

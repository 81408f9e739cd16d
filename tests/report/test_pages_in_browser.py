"""Pages in a browser: nothing is wider than the window, on a phone and on a desk, and everything is drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_fakes import report

from umcompress.report.html import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MEASURED = """<script>
const seen = [...document.querySelectorAll("svg.own")].filter(one => one.getBoundingClientRect().height > 30).length;
document.title = [document.documentElement.scrollWidth, window.innerWidth, seen].join(" ");
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    wide = report(notes=("a.path.that.is.longer.than.a.phone.is.wide." * 4,), model="m" * 90)
    file.write_text(page(wide, "runs/a").replace("</body>", MEASURED), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path}/u", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    wanted, window, drawn = map(int, found.groups())
    assert wanted <= window, "the page scrolls sideways"
    assert drawn == 7, "two charts of scores, five of sizes and speeds"

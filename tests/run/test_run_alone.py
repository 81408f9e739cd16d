"""An output folder is one run's at a time: two would take each other's files away.  And a disk may be full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO
from run_fakes import depends_on

from umcompress.cli.main import main
from umcompress.errors import UsageError
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.files import LoadedRecipe, load_recipe
from umcompress.run.folder import RunFolder

HOLDS = """
import sys, time
from pathlib import Path
from umcompress.run.dependencies import Dependencies
from umcompress.run.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), Dependencies(steps=()))
folder.hold("test")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedRecipe:
    drop = {"pass": "layer_drop", "component": "generation", "drop_count": 1}
    recipe = write_recipe(tmp_path, Path("bagel-mini"), drop)
    return load_recipe(str(recipe), find_pass, find_evaluation)


def test_a_second_process_is_refused_until_the_first_is_gone(loaded: LoadedRecipe, tmp_path: Path) -> None:
    out, ours = tmp_path / "out", RunFolder(tmp_path / "out", depends_on())
    assert ours.claim(loaded) is False
    ours.release()
    before = sorted(path.name for path in out.iterdir())
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="at work in it") as refused:
            ours.claim(loaded)
        assert "-o" in refused.value.do
    finally:
        first.kill()
        first.wait()
    # Killed without a word: nothing is left that would keep others out.
    assert ours.claim(loaded) is True
    ours.release()
    assert sorted(path.name for path in out.iterdir()) == before


def test_a_released_folder_is_free(loaded: LoadedRecipe, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", depends_on())
    folder.claim(loaded)
    with pytest.raises(UsageError, match="at work in it"):
        RunFolder(tmp_path / "out", depends_on()).claim(loaded)
    folder.release()
    folder.release()
    other = RunFolder(tmp_path / "out", depends_on())
    assert other.claim(loaded) is True
    other.release()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_takes_no_more_is_no_traceback_and_the_run_goes_on(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_folder(ZOO["llama"].build(), tmp_path / "model")
    recipe = write_recipe(tmp_path, model, {"pass": "layer_drop", "unit": "block", "drop": [1]})

    def refuse(stream: Any, data: Any) -> None:
        raise OSError(code, os.strerror(code))

    command = ["apply", str(recipe), "-o", str(tmp_path / "out")]
    with monkeypatch.context() as full:
        full.setattr("umcompress.checkpoint.writer._write", refuse)
        assert main(command) == 1
    said = capsys.readouterr().err
    assert f"found: {os.strerror(code)}" in said and "same command" in said and "Traceback" not in said
    assert not list((tmp_path / "out").glob(".model*"))
    assert main(command) == 0
    assert "done before" in capsys.readouterr().err

"""The family of docs/my_family.py, registered as a package would: found, compressed, loaded again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from places import DOCS
from safetensors.torch import save_file

from umcompress import plugins
from umcompress.cli.main import main
from umcompress.models.source import open_source

CONFIG = {"hidden": 32, "heads": 4, "width": 64, "layers": 3}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the example, with a distribution beside it whose entry point is that of the page."""
    package = tmp_path / "site"
    (package / "my_family-1.0.dist-info").mkdir(parents=True)
    (package / "my_family.py").write_text((DOCS / "my_family.py").read_text())
    about = "Metadata-Version: 2.1\nName: my-family\nVersion: 1.0\n"
    (package / "my_family-1.0.dist-info" / "METADATA").write_text(about)
    page = (DOCS / "adding-a-model-family.md").read_text()
    entry = page.split("```toml\n")[1].split("```")[0]
    text = entry.replace('[project.entry-points."', "[").replace('"]', "]").replace('"', "")
    (package / "my_family-1.0.dist-info" / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(package)
    # Results are verified in a process of their own.
    monkeypatch.setenv("PYTHONPATH", str(package))
    plugins.entries.cache_clear()
    yield importlib.import_module("my_family")
    plugins.entries.cache_clear()


@pytest.fixture
def folder(mine: Any, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    found = tmp_path / "model"
    found.mkdir()
    (found / mine.CONFIG).write_text(json.dumps(CONFIG))
    save_file(mine.ByteModel(**CONFIG).state_dict(), found / mine.WEIGHTS)
    return found


def test_the_entry_point_finds_it_and_it_answers(mine: Any, folder: Path) -> None:
    source = open_source(str(folder))
    assert isinstance(source.family, mine.ByteFamily)
    runner = source.runner(source.load())
    assert len(runner.answer([None], ["what?"], max_new_tokens=3)[0]) == 3
    # The probability of a text is that of its beginning times that of the rest after it.
    parts = (runner.score([None], ["\n"], [["a"]]), runner.score([None], ["\na"], [["bc"]]))
    whole = runner.score([None], [None], [["abc"]])[0][0].nats
    assert whole == pytest.approx(sum(part[0][0].nats for part in parts), rel=1e-5) and whole < 0


def test_a_recipe_compresses_it(mine: Any, folder: Path, tmp_path: Path) -> None:
    """Verified by the run itself: the result computes in a fresh process what it computed here."""
    steps = yaml.safe_load((DOCS / "adding-a-model-family.md").read_text().split("```yaml\n")[1].split("```")[0])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(steps | {"model": str(folder), "output": str(tmp_path / "run")}))
    assert main(["apply", str(recipe)]) == 0
    made = open_source(str(tmp_path / "run"))
    model: Any = made.load()
    before: Any = open_source(str(folder)).load()
    kept = [block.attention.inputs.weight for block in (before.blocks[0], before.blocks[2])]
    for block, weight in zip(model.blocks, kept, strict=True):
        assert torch.equal(block.attention.inputs.weight, weight)
    assert [block.up.out_features for block in model.blocks] == [32, 32]
    assert made.runner(model).probe()["logits"].isfinite().all()

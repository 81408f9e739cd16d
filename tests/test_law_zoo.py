"""In memory and from file to file, bit for bit: every edit, on every architecture of the support table and a BAGEL."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing_zoo import draw_any_plan
from hf_models import write_folder
from hf_zoo import ZOO
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_bagel import write_tiny_bagel

from umcompress.checkpoint import parts
from umcompress.edits import CompressionRecord
from umcompress.opening import Source, open_source
from umcompress.out_of_core import open_on_disk, write
from umcompress.rewrite.apply import rewrite
from umcompress.rewrite.store import save_compressed, save_plain


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@cache
def opened(name: str, home: Path) -> tuple[Source, Any]:
    """A folder as transformers saves it, and the model in memory, never changed."""
    torch.manual_seed(0)
    folder = home / name
    if name == "bagel":
        write_tiny_bagel(folder)
    else:
        write_folder(ZOO[name].build(), folder)
    source = open_source(str(folder))
    return source, source.load()


@pytest.mark.parametrize("name", [*ZOO, "bagel"])
@settings(
    max_examples=2, derandomize=True, suppress_health_check=list(HealthCheck), database=None,
    phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
@given(data=st.data())
def test_law_b_of_every_architecture(name: str, home: Path, data: st.DataObject) -> None:
    source, model = opened(name, home)
    family, memory, disk = source.family, copy.deepcopy(model), open_on_disk(source)
    plans = []
    for title in ("first", "second"):
        plan, values = draw_any_plan(data, memory, family, title)
        rewrite(memory, family, [plan], [values])
        disk.apply(plan, values)
        plans.append(plan)
    record = CompressionRecord(base=name, family=family.name, plans=tuple(plans))
    one, other = source.folder / "memory", source.folder / "disk"
    plain = family.plain(memory, source.folder, plans)
    if isinstance(plain, str):
        save_compressed(memory, family, one, record, source.folder, replace=True)
    else:
        save_plain(plain, one, source.folder, replace=True)
    with pytest.MonkeyPatch.context() as patch:
        # Pieces of a few rows each, so that tensors are really cut.
        patch.setattr(parts, "PIECE", data.draw(st.sampled_from([400, 1, 1 << 20])))
        write(disk, other, record)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name

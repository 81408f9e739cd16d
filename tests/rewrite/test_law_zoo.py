"""In memory and from file to file, bit for bit: every edit, on every architecture of the support table and a BAGEL."""

from __future__ import annotations

import copy
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing_zoo import draw_any_plan, some_values
from hf_models import write_folder
from hf_subject import void
from hf_zoo import ZOO
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_bagel import write_tiny_bagel

from umcompress.calibrate.collect import collect
from umcompress.checkpoint import parts
from umcompress.documents.plan import CompressionRecord, DropBlock, Plan, SetTensors
from umcompress.extend import BlockSimilarity, ChannelMoments, HeadContribution, Scope
from umcompress.graph.model_graph import trace_model
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source, open_source
from umcompress.models.streamed import streamed
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import OnDisk, open_on_disk

# Windows, fused and turned weights, experts, tied weights, two stacks, parts of several dtypes.
MEASURED = ["mixtral", "qwen3_moe", "gpt2", "phi3", "gemma2", "qwen2", "qwen2_5_vl", "janus", "clip", "internvl"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@cache
def opened(name: str, home: Path, dtype: str | None = None) -> tuple[Source, Any]:
    """A folder as transformers saves it, and the model in memory, never changed."""
    torch.manual_seed(0)
    folder = home / name
    if name == "bagel" and not folder.exists():
        write_tiny_bagel(folder)
    elif not folder.exists():
        write_folder(ZOO[name].build(), folder)
    source = open_source(str(folder), dtype)
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
    same_written(disk, memory, plans, data.draw(st.sampled_from([400, 1, 1 << 20])))


@pytest.mark.parametrize("name", ZOO)
def test_law_b_where_the_result_is_ordinary(name: str, home: Path) -> None:
    """A layer less and new values in half precision: a folder that transformers loads by itself."""
    source, model = opened(name, home, "bfloat16")
    memory, disk, dice = copy.deepcopy(model), open_on_disk(source, "bfloat16"), random.Random(1)
    stack, path = next(iter(source.family.stacks(model).items()))
    values = some_values(dice, model)
    edits = (SetTensors(names=tuple(sorted(values))), DropBlock(block=f"{path}.{dice.randrange(2)}"))
    plan = Plan(pass_name="drawn", edits=edits)
    rewrite(memory, source.family, [plan], [values])
    disk.apply(plan, values)
    assert same_written(disk, memory, [plan], 400), stack


@pytest.mark.parametrize("name", [*MEASURED, "bagel"])
def test_statistics_of_a_streamed_run_are_those_of_the_model_in_memory(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umcompress.models.streamed.LARGE", 0)
    source, model = opened(name, home)
    disk, runner = open_on_disk(source), source.runner(model)
    needs = [declared(Scope(stack="all")) for declared in (BlockSimilarity, ChannelMoments, HeadContribution)]

    def streamed_run() -> None:
        with streamed(disk.model, source.family, disk.read):
            source.runner(disk.model).probe()

    with disk.disk:
        found = collect(trace_model(disk.model, source.family, disk.read), needs, streamed_run)
    wanted = collect(trace_model(model, source.family), needs, lambda: void(runner.probe()))
    for need in needs:
        assert set(found[need]) == set(wanted[need])
        for key in found[need]:
            for field, value in vars(wanted[need]._values[key]).items():
                torch.testing.assert_close(getattr(found[need]._values[key], field), value, rtol=0, atol=1e-6)
    assert len(found[needs[0]]) and all(parameter.is_meta for parameter in disk.model.parameters())


def same_written(disk: OnDisk, memory: Any, plans: list[Plan], piece: int) -> bool:
    """Write both and compare every file; whether they are of an ordinary model."""
    source, family = disk.source, disk.source.family
    record = CompressionRecord(base="x", family=family.name, plans=tuple(plans))
    one, other = source.folder / "memory", source.folder / "disk"
    plain = family.plain(memory, source.folder, plans)
    if isinstance(plain, str):
        save_compressed(memory, family, one, record, source.folder, replace=True)
    else:
        save_plain(plain, one, source.folder, replace=True)
    with pytest.MonkeyPatch.context() as patch:
        # Pieces of a few rows each, so that tensors are really cut.
        patch.setattr(parts, "PIECE", piece)
        disk.write(other, record)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    return not isinstance(plain, str)

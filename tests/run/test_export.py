"""`umcompress export`: results in the layouts of other programs, checked after they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_models import write_folder
from hf_zoo import ZOO
from safetensors.torch import load_file
from tiny_bagel import DECODER
from transformers import AutoModelForCausalLM

from umcompress.checkpoint.writer import write_file
from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBranch, Edit, KeepChannels, Plan
from umcompress.errors import CheckError
from umcompress.models.save import save_compressed
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite
from umcompress.run import export as export_command


def cut(folder: Path, to: Path, *edits: Edit) -> Path:
    """A compressed model of ours, with its plans."""
    source = open_source(str(folder))
    plan = Plan(pass_name="cut", edits=edits)
    model = rewrite(source.load(), source.family, [plan])
    record = CompressionRecord(base=str(folder), family=source.family.name, plans=(plan,))
    save_compressed(model, source.family, to, record, folder)
    return to


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("ragged")
    folder = write_folder(ZOO["llama"].build().eval(), work / "llama")
    return cut(
        folder, work / "cut", KeepChannels(site="model.layers.0.mlp", keep=tuple(range(5, 30))),
        KeepChannels(site="model.layers.2.mlp", keep=(1, 40)),
        DropBranch(block="model.layers.1", branch="attention", component="shared"),
    )  # fmt: skip


def test_a_ragged_llama_filled_up_is_an_ordinary_one(
    ragged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(ragged), "--to", "pad", "-o", str(tmp_path / "out")]) == 0
    assert "saves no memory" in capsys.readouterr().out
    filled, source = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), open_source(str(ragged))
    ids = torch.tensor([[5, 9, 2, 77, 30]])
    with torch.no_grad():
        difference = filled(ids).logits - source.load()(ids).logits
    assert filled.config.intermediate_size == 48 and difference.abs().max() < 1e-5


def test_vllm_gets_what_it_reads(ragged: Path, tmp_path: Path) -> None:
    """No ordinary Llama, so a DeciLM; of an ordinary one, the ordinary folder."""
    for run, architecture in ((ragged, "DeciLMForCausalLM"), (ragged.parent / "llama", "LlamaForCausalLM")):
        out = tmp_path / architecture
        assert main(["export", str(run), "--to", "vllm", "-o", str(out)]) == 0
        assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]
        assert not (out / "umcompress.json").exists()


def test_streams_of_unequal_width_filled_up_are_a_plain_bagel(tiny_bagel: Path, tmp_path: Path) -> None:
    edits = [KeepChannels(site=f"{DECODER}.{layer}.mlp", keep=tuple(range(layer, 40))) for layer in range(3)]
    run = cut(
        tiny_bagel, tmp_path / "run", *edits[:2],
        DropBranch(block=f"{DECODER}.2", branch="feed_forward", component="understanding"),
    )  # fmt: skip
    assert main(["export", str(run), "--to", "pad", "-o", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "umcompress.json").exists()
    ours, theirs = (open_source(str(folder)) for folder in (run, tmp_path / "out"))
    wanted, found = ours.runner(ours.load()).probe(), theirs.runner(theirs.load()).probe()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


@pytest.mark.parametrize(
    ("layout", "says"),
    [("bagel", "the streams differ in width"), ("deci", "can be written as bagel"), ("bagle", "did you mean 'bagel'")],
)
def test_what_cannot_be_written_says_why(
    layout: str, says: str, tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = [KeepChannels(site=f"{DECODER}.{layer}.mlp", keep=(1, 2, 3)) for layer in range(3)]
    run = cut(tiny_bagel, tmp_path / "run", *edits)
    assert main(["export", str(run), "--to", layout, "-o", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_lost_attention_of_one_stream_is_not_filled_up(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys of zeros would take part in the softmax of the other stream."""
    gone = DropBranch(block=f"{DECODER}.1", branch="attention", component="generation")
    run = cut(tiny_bagel, tmp_path / "run", gone)
    assert main(["export", str(run), "--to", "pad", "-o", str(tmp_path / "out")]) == 2
    assert "would look at its keys" in capsys.readouterr().err


def test_nothing_is_written_over(ragged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(ragged), "--to", "deci", "-o", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_tensor_that_was_written_wrongly_is_noticed(ragged: Path, tmp_path: Path) -> None:
    from umcompress.checkpoint.writer import in_memory
    from umcompress.models.plain_folder import Plain

    source = open_source(str(ragged))
    plain = source.family.laid_out("deci", source.load(), ragged)
    assert isinstance(plain, Plain)
    file, tensors = next(iter(plain.weights.items()))
    write_file(tmp_path / file, tensors)
    export_command.compare_files(plain, tmp_path)
    other = {name: in_memory(tensor) for name, tensor in load_file(tmp_path / file).items()}
    name = "model.layers.0.mlp.up_proj.weight"
    write_file(tmp_path / file, other | {name: in_memory(other[name].make() + 1)})
    with pytest.raises(CheckError, match=name):
        export_command.compare_files(plain, tmp_path)


EXPORTED = """\
model: {model}
steps:
  - {{pass: layer_drop, unit: {unit}, score: first, drop_count: 1}}
  - {{pass: channel_prune, score: magnitude, keep_ratio: 0.5, multiple_of: 4}}
export:
  to: deci
"""


def test_a_recipe_exports_its_result_by_the_same_code(
    ragged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run, model = tmp_path / "cut.yaml", tmp_path / "run", ragged.parent / "llama"
    recipe.write_text(EXPORTED.format(model=model, unit="feed_forward"))
    assert main(["plan", str(recipe)]) == 0
    assert "deci can hold the result" in " ".join(capsys.readouterr().out.split())
    assert main(["apply", str(recipe), "-o", str(run)]) == 0
    assert main(["export", str(run), "--to", "deci", "-o", str(tmp_path / "out")]) == 0
    for file in ("config.json", "model.safetensors"):
        assert (run / "export" / "deci" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    report = json.loads((run / "report.json").read_text())
    assert any("export/deci: " in note and "every tensor was read back" in note for note in report["notes"])
    # Of a finished run only what is missing is made.
    written = (run / "model" / "config.json").stat().st_mtime_ns
    recipe.write_text(recipe.read_text().replace("to: deci", "pad: true"))
    assert main(["apply", str(recipe), "-o", str(run)]) == 0
    assert sorted(path.name for path in (run / "export").iterdir()) == ["deci", "pad"]
    assert (run / "model" / "config.json").stat().st_mtime_ns == written
    assert "pad: true" in (run / "recipe.yaml").read_text()


def test_a_result_that_the_layout_cannot_hold_is_refused_before_anything_runs(
    ragged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tmp_path / "cut.yaml", tmp_path / "run"
    recipe.write_text(EXPORTED.format(model=ragged.parent / "llama", unit="attention"))
    assert main(["apply", str(recipe), "-o", str(run)]) == 2
    said = capsys.readouterr().err
    assert "cut.yaml:5" in said and "block 0 has none" in said and not run.exists()
    assert main(["plan", str(recipe)]) == 2


@pytest.mark.parametrize(
    ("stopped", "code"), [(CheckError("read back", "other values", ""), 1), (KeyboardInterrupt(), 130)]
)
def test_an_export_is_there_once_it_is_checked(
    stopped: BaseException, code: int, ragged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(_: object, folder: Path) -> None:
        assert any(folder.glob("*.safetensors")) and not (tmp_path / "out").exists()
        raise stopped

    monkeypatch.setattr(export_command, "compare_files", differs)
    assert main(["export", str(ragged), "--to", "deci", "-o", str(tmp_path / "out")]) == code
    assert not list(tmp_path.iterdir())

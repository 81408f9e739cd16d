"""`umcompress sensitivity` on a pico Llama and a pico BAGEL: figures of separate runs, resuming, the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder, write_recipe
from tiny_bagel import write_tiny_bagel
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main
from umcompress.documents.alone import PartScore, Sensitivity
from umcompress.documents.report import read_report
from umcompress.run.alone import Alone
from umcompress.run.sensitivity import Asked, _recipe


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, held-out texts and texts to calibrate on."""
    folder = tmp_path_factory.mktemp("sensitivity")
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )
    write_folder(LlamaForCausalLM(config), folder / "llama")
    for name, texts in {"held": ["one two", "a longer text", "hm!", "the end"], "own": ["to calibrate", "on"]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def command(folder: Path, out: Path) -> list[str]:
    data = ["--data", str(folder / "held.jsonl"), "--calibration", str(folder / "own.jsonl")]
    return ["sensitivity", str(folder / "llama"), *data, "--samples", "2", "-o", str(out)]


@pytest.fixture(scope="module")
def measured(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "measured"
    assert main(command(llama, out)) == 0
    return out


def read(folder: Path) -> Sensitivity:
    return Sensitivity.model_validate_json((folder / "sensitivity.json").read_text())


def part(found: Sensitivity, layer: int, name: str, change: str, component: str = "shared") -> PartScore:
    wanted = (component, layer, name, change)
    return next(p for p in found.parts if (p.component, p.layer, p.part, p.change) == wanted)


@pytest.mark.parametrize(("name", "change", "steps"), [
    ("attention", "dropped", [{"pass": "layer_drop", "unit": "attention", "drop": [1]}]),
    ("block", "halved", [{"pass": "head_prune", "layers": "1", "keep_ratio": 0.5},
                         {"pass": "channel_prune", "name": "half", "layers": "1", "keep_ratio": 0.5,
                          "after": "baseline"}]),
])  # fmt: skip
def test_a_change_is_that_of_a_run(
    llama: Path, measured: Path, tmp_path: Path, name: str, change: str, steps: list[dict[str, Any]]
) -> None:
    """Of the block by halves the channels are chosen on the unpruned model, as they are in the alternative here."""
    if name == "block":
        alone = write_recipe(
            tmp_path, llama / "llama", *steps, calibration={"data": str(llama / "own.jsonl"), "samples": 2}
        )
        assert main(["apply", str(alone), "-o", str(tmp_path / "plans")]) == 0
        plans = json.loads((tmp_path / "plans" / "plan.json").read_text())
        keep = plans["half"]["edits"][0]["keep"]
        assert len(keep) == 24
        found = part(read(measured), 1, name, change)
        assert len(found.branches) == 2 and not found.dropped and found.changes["understanding"].paired
        return
    recipe = write_recipe(tmp_path, llama / "llama", *steps, evaluate=[
        {"task_loss": {"data": str(llama / "held.jsonl"), "items": 128}}])  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    step = read_report(tmp_path / "run").steps[-1]
    found = part(read(measured), 1, name, change)
    assert found.changes == step.changes and found.parameters == step.parameters.total
    assert found.dropped == found.branches == ("model.layers.1 attention shared",)


def test_a_killed_one_resumes_to_the_same_bytes(
    llama: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, calls = Alone._measured, list[str]()

    def killed(self: Alone, name: str, proposals: Any) -> Any:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return scored(self, name, proposals)

    with monkeypatch.context() as patched:
        patched.setattr(Alone, "_measured", killed)
        assert main(command(llama, tmp_path / "out")) == 130
    calls.clear()

    def counted(self: Alone, name: str, proposals: Any) -> Any:
        calls.append(name)
        return scored(self, name, proposals)

    monkeypatch.setattr(Alone, "_measured", counted)
    assert main(command(llama, tmp_path / "out")) == 0
    assert len(calls) == len(read(measured).parts) - 4
    for name in ("sensitivity.json", "sensitivity.svg", "sensitivity.html"):
        assert (tmp_path / "out" / name).read_bytes() == (measured / name).read_bytes()


def test_other_options_do_not_mix(llama: Path, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(llama, measured), "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_what_calibrates_is_loaded_as_asked() -> None:
    assert [_recipe(Asked(model="bagel-mini", dtype=dtype)).dtype for dtype in (None, "bfloat16")] == [None, "bfloat16"]


def test_held_out_data_alone_are_refused(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", str(llama / "llama"), "--data", str(llama / "held.jsonl")]) == 2
    assert "--calibration" in capsys.readouterr().err
    assert main(["sensitivity", str(llama / "llama")]) == 2
    assert "texts" in capsys.readouterr().err


def test_a_unified_model_has_both_tasks_and_components(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_tiny_bagel(tmp_path / "bagel", num_hidden_layers=2), tmp_path / "out"
    assert main(["sensitivity", str(folder), "--items", "2", "--samples", "2", "-o", str(out)]) == 0
    found = read(out)
    assert len(found.parts) == 2 * 2 * 6 and list(found.baseline) == ["understanding", "generation"]
    # What only pictures pass changes no answer, to the last bit; the other way round it does.
    assert all(one.changes["understanding"].value == 0 for one in found.parts if one.component == "generation")
    assert part(found, 0, "block", "dropped", "understanding").changes["generation"].value != 0
    assert {(one.task, one.component) for one in found.similarities} == {
        ("understanding", "understanding"), ("generation", "understanding"), ("generation", "generation")
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "Generation loss, understanding parts" in shown
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "sensitivity.html").read_text().count('<figure class="plot">') == 6

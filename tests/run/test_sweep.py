"""A sweep through the command line: numbers of separate runs, shared work, resuming, pictures."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from forked_command import Command
from hf_models import write_folder, write_recipe
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main
from umcompress.documents.previews import SweepPlan
from umcompress.documents.report import read_report
from umcompress.documents.sweep import Sweep, values_text
from umcompress.errors import UsageError
from umcompress.plan.grid import axes_of, cells_of
from umcompress.report import pictures, sweep_page
from umcompress.report.sweep_plot import figure, points
from umcompress.report.sweep_samples import sample_series, sample_strips, write_samples

AXES = ["--axis", "steps.1.score=activation,magnitude", "--axis", "steps.1.keep_ratio=0.75,0.5"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads by magnitude, then channels; a pico Llama scored by its loss."""
    folder = tmp_path_factory.mktemp("sweep")
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )
    model = write_folder(LlamaForCausalLM(config), folder / "llama")
    for name, texts in {"held": ["one two", "a longer text", "hm!", "the end"], "own": ["to calibrate", "on"]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    steps = [{"pass": "channel_prune", "keep_ratio": 0.9, "score": "magnitude"},
             {"pass": "channel_prune", "keep_ratio": 0.5}]  # fmt: skip
    return write_recipe(
        folder, model, *steps, evaluate=[{"task_loss": {"data": str(folder / "held.jsonl")}}],
        calibration={"data": str(folder / "own.jsonl"), "samples": 2},
    )


@pytest.fixture(scope="module")
def swept(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "sweep"
    assert main(["sweep", str(recipe), *AXES, "-o", str(out)]) == 0
    return out


def read(folder: Path) -> Sweep:
    return Sweep.model_validate_json((folder / "sweep.json").read_text())


def untimed(value: Any) -> Any:
    """Without what the clock says."""
    if isinstance(value, dict):
        timed = ("seconds", "speed", "flags", "created")
        return {key: untimed(part) for key, part in value.items() if key not in timed}
    return [untimed(part) for part in value] if isinstance(value, list) else value


def test_numbers_are_those_of_separate_runs(recipe: Path, swept: Path, tmp_path: Path) -> None:
    cells = read(swept).cells
    assert [cell.values["steps.1.keep_ratio"] for cell in cells] == [0.75, 0.5, 0.75, 0.5]
    for cell in cells[1:2]:
        alone = tmp_path / cell.name
        settings = [part for path, value in cell.values.items() for part in ("--set", f"{path}={value}")]
        assert main(["apply", str(recipe), *settings, "-o", str(alone)]) == 0
        mine, theirs = read_report(swept / "cells" / cell.name), read_report(alone)
        assert untimed(mine.json_values()["steps"]) == untimed(theirs.json_values()["steps"])
        assert mine.result == cell.result and mine.fingerprint == theirs.fingerprint
        file = "model/model.safetensors"
        assert (swept / "cells" / cell.name / file).read_bytes() == (alone / file).read_bytes()


def test_what_cells_share_is_done_once_and_a_killed_sweep_resumes(
    recipe: Path, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from umcompress.run.loop import Loop

    measured, calls = Loop._measured, []

    def killed(self: Loop, *arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measured(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_measured", killed)
        assert main(["sweep", str(recipe), *AXES, "-o", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    # The baseline, the step that is equal, and a step for each of three cells.
    assert calls == ["baseline", "01-channel_prune", *["02-channel_prune"] * 3]
    assert said.count("calibrating on 2") == 1 and said.count("calibrated before") == 1
    assert main(["sweep", str(recipe), *AXES, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("nothing is left to do") == 2 and "unpruned model" not in said
    assert untimed(read(tmp_path / "out").json_values()) == untimed(read(swept).json_values())
    same = ["sweep.svg", "sweep.html"]
    for cell in read(swept).cells:
        files = ("plan.json", "model/model.safetensors", "steps/02-channel_prune/task_loss/losses.jsonl")
        same += [f"cells/{cell.name}/{name}" for name in files]
    for name in same:
        assert (tmp_path / "out" / name).read_bytes() == (swept / name).read_bytes(), name


def test_a_finished_sweep_is_shown_again(recipe: Path, swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (swept / name).read_bytes() for name in ("sweep.json", "sweep.svg", "sweep.html")}
    assert main(["sweep", str(recipe), *AXES, "-o", str(swept)]) == 0
    out = capsys.readouterr().out
    assert "score magnitude, keep_ratio 0.5" in out and "next: umcompress compare" in out
    assert max(map(len, out.splitlines()[:12])) <= 100
    assert before == {name: (swept / name).read_bytes() for name in before}
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_line_a_series_and_the_paired_band(swept: Path) -> None:
    result = read(swept)
    along, series = result.series()
    assert along == "steps.1.keep_ratio" and list(series) == ["score activation", "score magnitude"]
    found = points(result, ("", "understanding"), along, series["score activation"])
    assert [point[0] for point in found] == [0.5, 0.75]
    step = next(cell.result for cell in series["score activation"] if cell.values[along] == 0.5)
    assert step is not None
    change, old = step.changes["understanding"], result.baseline.scores["understanding"].value
    assert change.paired and found[0][1:] == (step.scores["understanding"].value, old + change.low, old + change.high)
    (panel,) = figure(result).axes
    assert [line.get_label() for line in panel.lines] == ["score activation", "score magnitude", "unpruned"]
    assert panel.get_ylabel() == "understanding loss (lower is better)"
    assert panel.get_xlabel() == "keep ratio"


def test_a_plan_of_a_sweep_says_sizes_what_is_legal_and_the_time(
    recipe: Path, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), *AXES, "-o", str(swept), "--format", "json"]) == 0
    plan = SweepPlan.model_validate_json(capsys.readouterr().out)
    for planned, cell in zip(plan.cells, read(swept).cells, strict=True):
        assert cell.result is not None and planned.parameters is not None and planned.done
        assert (planned.name, planned.parameters.total) == (cell.name, cell.result.parameters.total)
        assert planned.macs_per_token == cell.result.macs_per_token
    assert plan.seconds == 0
    assert main(["plan", str(recipe), "--axis", "steps.1.keep_ratio=0.5,1.5,0.001", "-o", str(tmp_path)]) == 2
    shown = capsys.readouterr().out
    assert "3 cells, 2 can be run" in shown and "keep_ratio 1.5 CANNOT" in shown and "first cell is done" in shown


def test_samples_stand_along_a_series(swept: Path, tmp_path: Path) -> None:
    """Sheets of any evaluation will do; here they are put in place by hand."""
    folder = tmp_path / "swept"
    shutil.copytree(swept, folder)
    result, sheet = read(swept), "steps/02-channel_prune/samples.png"
    cells = [cell.model_copy(update={"result": cell.result and cell.result.model_copy(update={"samples": sheet})})
             for cell in result.cells]  # fmt: skip
    for number, cell in enumerate(cells[:2]):
        Image.new("RGB", (8, 4), (number, 0, 0)).save(folder / "cells" / cell.name / sheet)
    found = sample_series(result.model_copy(update={"cells": tuple(cells)}), folder)
    assert [words for words, _ in found["score activation"]] == ["0.75", "0.5"] and len(found) == 1
    ((title, strip),) = sample_strips(found).items()
    assert title == "Samples: score activation" and [words for words, _ in strip] == ["0.75", "0.5"]
    assert len({picture for _, picture in strip if picture.startswith("data:image/png;base64,")}) == 2
    assert write_samples(found, folder / "samples.png") == ["samples.png"]
    with Image.open(folder / "samples.png") as drawn:
        assert drawn.width >= 480 and drawn.height == 2 * (240 + 18)


def test_processes_take_turns_and_come_to_the_same(recipe: Path, swept: Path, tmp_path: Path) -> None:
    """The third cell is left to do, and it is the second process's; its baseline is that of the first cell."""
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    shutil.rmtree(out / "cells" / read(swept).cells[2].name)
    (out / "sweep.json").unlink()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = ["sweep", str(recipe), *AXES, "-o", str(out)]
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    running = [Command(*arguments, environment=rank) for rank in ranks]
    done = [one.wait() for one in running]
    said = [one.stderr for one in done]
    assert [one.returncode for one in done] == [0, 0], said
    assert "process 0: cell 1 of 4" in said[0] and "process 1: cell 3 of 4" in said[1]
    assert "evaluating" not in said[0]
    assert "baseline: done before" in said[1] and "01-channel_prune: done before" in said[1]
    assert untimed(read(out).json_values()) == untimed(read(swept).json_values())


def test_without_matplotlib_the_table_is_there_and_says_so(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    assert sweep_page.write_pictures(read(swept), tmp_path) == []
    text = (tmp_path / "sweep.html").read_text()
    assert "pip install" in text and "keep_ratio 0.5" in text


def test_whole_steps_are_values() -> None:
    (axis,) = axes_of(["steps.0={pass: layer_drop, unit: block}, {pass: head_prune}"]).items()
    assert axis[0] == "steps.0" and axis[1][1] == {"pass": "head_prune"}
    cells = cells_of({axis[0]: axis[1]})
    assert [cell.name for cell in cells] == ["layer_drop-unit-block", "head_prune"]
    assert values_text({"steps.0.keep_ratio": 0.5, "steps.1.keep_ratio": 0.25}).startswith("steps.0.keep_ratio 0.5")


@pytest.mark.parametrize("text", ["keep_ratio", "=1,2", "steps.0.keep_ratio=", "steps.0.keep_ratio=[1,2"])
def test_what_is_no_axis(text: str) -> None:
    with pytest.raises(UsageError, match="--axis"):
        axes_of([text])


def test_a_value_that_is_not_allowed_is_refused_before_anything_runs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(recipe), "--axis", "steps.1.keep_ratio=0.5,1.5", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "--axis steps.1.keep_ratio=1.5" in said and "--set" not in said and "keep_ratio-1.5" in said
    assert not list(tmp_path.glob("out/cells/*"))


def test_the_recipe_may_hold_the_grid(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(recipe.read_text()) | {"sweep": {"steps.1.keep_ratio": [0.75, 7]}}
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps(content))
    assert main(["sweep", str(own), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "keep_ratio-7" in said and "sweep: steps.1.keep_ratio=7" in said and "--set" not in said
    assert main(["sweep", str(recipe), "-o", str(tmp_path / "none")]) == 2
    assert "no axis" in capsys.readouterr().err

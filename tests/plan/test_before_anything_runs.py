"""What will certainly fail is said by `plan` and `init`, and by `apply` before the model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from hf_models import write_folder, write_recipe

from umcompress.cli.main import main
from umcompress.data.calibration_file import CalibrationFile
from umcompress.errors import UsageError
from umcompress.evals.text.perplexity import Perplexity

DROP: dict[str, Any] = {"pass": "layer_drop", "component": "shared", "unit": "block", "drop_count": 1}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A GPT-2 with positions for 64 tokens, and a text."""
    config = hf.GPT2Config(vocab_size=96, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1)
    write_folder(hf.GPT2LMHeadModel(config), tmp_path / "gpt2")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 300, encoding="utf-8")
    return tmp_path


def refused(recipe: Path, out: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By `plan` in its report, by `apply` before there is a folder."""
    assert main(["plan", str(recipe)]) == 2
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())
    assert main(["apply", str(recipe), "-o", str(out)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def perplexity(home: Path, **options: Any) -> list[dict[str, Any]]:
    return [{"perplexity": {"data": str(home / "text.txt"), "window": 16, **options}}]


def test_windows_that_are_longer_than_the_model_has_positions(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(home, home / "gpt2", DROP, evaluate=perplexity(home, window=512))
    refused(recipe, home / "run", "set window: 64", capsys)
    evaluation = f"perplexity:data={home / 'text.txt'}"
    assert main(["init", str(home / "gpt2"), "--evaluation", evaluation, "-o", str(home / "first.yaml")]) == 2
    assert "set window: 64" in capsys.readouterr().err
    assert not (home / "first.yaml").exists()


@pytest.mark.parametrize("scored", [True, False])
def test_a_tokenizer_that_is_not_there(scored: bool, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (home / "gpt2" / name).unlink()
    evaluate = perplexity(home) if scored else []
    calibration = {"data": str(home / "text.txt"), "samples": 2}
    recipe = write_recipe(home, home / "gpt2", DROP, evaluate=evaluate, calibration=calibration)
    refused(recipe, home / "run", "no tokenizer files", capsys)


def test_a_limit_to_the_drop_of_a_score_that_nothing_gives(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = DROP | {"stop_if": {"generation_drop": 0.1}}
    recipe = write_recipe(home, home / "gpt2", step, evaluate=perplexity(home))
    refused(recipe, home / "run", "no evaluation of the recipe scores generation", capsys)


@pytest.mark.parametrize("name", ["rows.json", "rows.JSONL", "rows.ndjson"])
def test_files_of_json_lines_are_known_by_their_names(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    items = CalibrationFile(data=file).calibration_items("understanding", 2, 0)
    assert {item.text for item in items} == {"one", "two"}
    file.write_text('[\n{"text": "one"}\n]\n', encoding="utf-8")
    with pytest.raises(UsageError, match="not JSON"):
        CalibrationFile(data=file).check()


def test_a_text_without_spaces_is_a_text(tmp_path: Path) -> None:
    """As some languages are written."""
    file = tmp_path / "text.txt"
    file.write_text("敏捷的棕色狐狸跳过懒狗" * 10, encoding="utf-8")
    one = Perplexity(data=file, held_out=0.5)
    one.check()
    assert [len(part) for part in one.parts()] == [55, 55]


@pytest.mark.parametrize("method", ["read_bytes", "write_text"])
def test_texts_and_recipes_that_the_file_system_refuses(
    method: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = getattr(Path, method)

    def refuse(self: Path, *given: Any, **settings: Any) -> Any:
        if self.parent == home and self.name in ("text.txt", "first.yaml"):
            raise PermissionError(13, "Permission denied")
        return known(self, *given, **settings)

    monkeypatch.setattr(Path, method, refuse)
    evaluation = f"perplexity:data={home / 'text.txt'},window=16"
    assert main(["init", str(home / "gpt2"), "--evaluation", evaluation, "-o", str(home / "first.yaml")]) == 2
    assert "found: Permission denied" in capsys.readouterr().err


def test_the_command_that_a_plan_names_is_that_of_what_was_planned(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(home, home / "gpt2", DROP, evaluate=perplexity(home))
    assert main(["plan", str(recipe), "--set", "steps.0.drop_count=2", "--dtype", "bfloat16"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith(f"next: umcompress apply {recipe} --set steps.0.drop_count=2 --dtype bfloat16")

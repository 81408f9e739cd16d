"""A run folder that a kill, a disk or a person left in pieces: taken over, redone or told of in words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO
from run_fakes import depends_on
from safetensors.torch import load_file, save_file

from umcompress.cli.main import main
from umcompress.errors import CheckError, UsageError
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.files import LoadedRecipe, load_recipe
from umcompress.run.export import removed_if_wrong
from umcompress.run.folder import Mark, RunFolder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, its recipe, and a finished run that nobody changes."""
    home = tmp_path_factory.mktemp("home")
    model = write_folder(ZOO["llama"].build(), home / "llama")
    recipe = write_recipe(home, model, {"pass": "layer_drop", "unit": "block", "drop": [1]}, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(home / "finished")]) == 0
    return home


@pytest.fixture
def loaded(home: Path) -> LoadedRecipe:
    return load_recipe(str(home / "recipe.yaml"), find_pass, find_evaluation)


@pytest.mark.parametrize("halves", [(), (".recipe.yaml.partial",), (".run.json.partial", "recipe.yaml")])
def test_a_folder_of_our_half_made_beginnings_is_taken_over(
    halves: tuple[str, ...], loaded: LoadedRecipe, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for name in halves:
        (tmp_path / "out" / name).write_text(loaded.text if name == "recipe.yaml" else "hal", encoding="utf-8")
    folder = RunFolder(tmp_path / "out", depends_on())
    assert folder.claim(loaded) is False
    folder.release()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"recipe.yaml", "recipe.resolved.yaml", "run.json"}


@pytest.mark.parametrize("name", ["recipe.yaml", "notes.txt"])
def test_what_somebody_wrote_is_not_taken_over(name: str, loaded: LoadedRecipe, tmp_path: Path) -> None:
    (tmp_path / name).write_text("my own", encoding="utf-8")
    with pytest.raises(UsageError, match="not empty"):
        RunFolder(tmp_path, depends_on()).claim(loaded)
    assert (tmp_path / name).read_text() == "my own"


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def of_another_encoding(file: Path) -> None:
    file.write_bytes(file.read_text(encoding="utf-8").encode("utf-16"))


def a_folder(file: Path) -> None:
    file.unlink()
    (file / "x").mkdir(parents=True)


def gone(file: Path) -> None:
    file.unlink()


def its_folder_a_file(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.write_text("a file", encoding="utf-8")


@pytest.mark.parametrize("damage", [emptied, cut, of_another_encoding, a_folder, gone, its_folder_a_file])
def test_a_damaged_step_is_none_and_is_written_anew(
    damage: Callable[[Path], None], home: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(home / "finished", tmp_path / "out")
    made_of = Mark.model_validate_json((out / "run.json").read_text()).depends_on
    assert made_of is not None
    folder = RunFolder(out, made_of)
    before = folder.committed(1, "01-layer_drop")
    assert before is not None
    damage(tmp_path / "out" / "steps" / "01-layer_drop" / "step.json")
    assert folder.committed(1, "01-layer_drop") is None
    folder.commit(1, "01-layer_drop", folder.work(1, "01-layer_drop"), before)
    assert folder.committed(1, "01-layer_drop") == before


def test_a_finished_run_whose_step_and_model_are_lost_comes_out_the_same(home: Path, tmp_path: Path) -> None:
    out = shutil.copytree(home / "finished", tmp_path / "out")
    shutil.rmtree(out / "model")
    emptied(out / "steps" / "01-layer_drop" / "step.json")
    assert main(["apply", str(home / "recipe.yaml"), "-o", str(out)]) == 0
    for name in ("model.safetensors", "README.md", "config.json"):
        assert (out / "model" / name).read_bytes() == (home / "finished" / "model" / name).read_bytes(), name


def not_a_number(weights: dict[str, torch.Tensor]) -> None:
    weights["model.embed_tokens.weight"][-1, 3] = torch.nan  # of a token that no fixed input has


def of_another_type(weights: dict[str, torch.Tensor]) -> None:
    """Finite as they are, too large to compute with: bytes of another type, say."""
    for name in weights:
        if "mlp" in name or "norm" in name:
            weights[name].fill_(1e30)


NOT_FINITE = "NaN or infinite values in 1 tensors, such as model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("damage", "words", "more"),
    [(not_a_number, NOT_FINITE, []), (not_a_number, NOT_FINITE, ["--out-of-core"]),
     (of_another_type, "computes NaN of fixed inputs", []),
     (of_another_type, "values of 2^64 and more in", ["--out-of-core"])],
)  # fmt: skip
def test_weights_that_cannot_be_right_are_found_before_anything_is_written(
    damage: Callable[[dict[str, torch.Tensor]], None], words: str, more: list[str], home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = shutil.copytree(home / "llama", tmp_path / "llama")
    weights = load_file(model / "model.safetensors")
    damage(weights)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    recipe = write_recipe(tmp_path, model, {"pass": "layer_drop", "unit": "block", "drop": [1]}, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out"), *more]) == 1
    assert words in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*model*"))


def test_a_model_that_fails_its_check_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckError), removed_if_wrong(tmp_path / "model"):
        raise CheckError("compute the same", "differences")
    assert not (tmp_path / "model").exists()

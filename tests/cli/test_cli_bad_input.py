"""What a user can get wrong, by the command line: exit code 2, a message that helps, no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_bagel import write_recipe

from umcompress.cli.main import main
from umcompress.errors import PlanError
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.models.source import open_source
from umcompress.plan.check import check
from umcompress.recipe.files import load_recipe

STEP: dict[str, Any] = {
    "pass": "channel_prune", "component": "understanding", "keep_ratio": 0.5, "score": "magnitude",
}  # fmt: skip
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must be refused; returns what it says."""

    def run(*arguments: object, contains: tuple[str, ...] = ()) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.out == ""
        for part in contains:
            assert part in said.err
        return said.err

    return run


@pytest.fixture
def model(tiny_bagel: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to damage."""
    return shutil.copytree(tiny_bagel, tmp_path / "model")


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "grey.png"
    Image.new("RGB", (36, 36), "grey").save(path)
    return path


# -- recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["apply", "plan"])
def test_yaml_that_does_not_parse(command: str, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: bagel-mini\nsteps:\n\t- pass: layer_drop\n", encoding="utf-8")
    refused(command, path, contains=(f"{path}:3: not valid YAML",))
    path.write_bytes(b"\xff\xfe\x00")
    refused(command, path, contains=("cannot be read",))
    refused(command, tmp_path, contains=("a folder of that name",))
    refused(command, "a" * 5000, contains=("no such file",))
    refused(command, "quickstrat", contains=("did you mean 'quickstart'?",))


def test_all_problems_of_a_recipe_at_once(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        """\
model: bagel-mni
evalute: [scenes]
calibration: {task: reading, samples: 0, source: scens}
evaluate: [scenis]
steps:
  - pass: layr_drop
  - pass: channel_prune
    component: undrstanding
    keep_ratio: 1.5
    repiar: bias
  - pass: head_prune
    keep_ratio: half
""",
        encoding="utf-8",
    )
    said = refused("apply", path, "--set", "steps.2.layers=7-2", contains=("has 12 problems",))
    expected = {
        "1: model:": "did you mean 'bagel-mini'?",
        "2: evalute: unknown key": "did you mean 'evaluate'?",
        "3: calibration.task: should be 'understanding', 'generation' or 'both'": "did you mean",
        "3: calibration.samples: should be greater than 0; found 0": "whole number above 0",
        "3: calibration.source: unknown evaluation 'scens'": "did you mean 'scenes'?",
        "4: evaluate.0: unknown evaluation 'scenis'": "did you mean 'scenes'?",
        "6: steps.0.pass: unknown pass 'layr_drop'": "did you mean 'layer_drop'?",
        "8: steps.1.component:": "did you mean 'understanding'?",
        "9: steps.1.keep_ratio: should be less than or equal to 1; found 1.5": "at most 1",
        "10: steps.1.repiar: unknown key": "did you mean 'repair'?",
        "12: steps.2.keep_ratio: should be a valid number; found \"half\"": "number above 0",
    }
    lines = said.splitlines()
    for start, hint in expected.items():
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{path}:{start}"))
        assert hint in lines[at + 1]
    assert "--set steps.2.layers=7-2: steps.2.layers: the range 7-2 runs backwards; write 2-7" in said


def test_overrides(refused: Refused, tiny_bagel: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tiny_bagel, STEP)
    for override, found in {
        "steps.4.keep_ratio=1": "there is no number 4",
        "steps.0.keep_rato=1": "did you mean 'keep_ratio'?",
        "steps.0.keep_ratio=[": "not valid YAML",
        "steps.0.keep_ratio": "PATH=VALUE",
        "steps.0.layers=7-2": "the range 7-2 runs backwards; write 2-7",
    }.items():
        refused("plan", path, "--set", override, contains=(f"--set {override}", found))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"layers": "7-9"}, "no layer 7, 8, 9 of 0 to 2"),
        ({"stack": "vison"}, "did you mean 'vision'?"),
        ({"stack": "vision", "component": "generation"}, "these blocks belong to understanding"),
        ({"keep_ratio": 0.999}, "of 96 channels, 1 to 95 can stay: keep_ratio below 0.9948"),
    ],
)
def test_a_step_that_selects_nothing(
    change: dict[str, Any], found: str, tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, tiny_bagel, STEP | change)
    assert main(["plan", str(path)]) == 2
    assert found in capsys.readouterr().out
    assert main(["apply", str(path), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert found in said.err
    assert "Traceback" not in said.err
    # It is known before anything is measured, and leaves no folder behind.
    assert "baseline" not in said.err
    assert not (tmp_path / "out").exists()


def test_what_is_sure_to_fail_is_known_before_anything_runs(tiny_bagel: Path, tmp_path: Path) -> None:
    def checked(*steps: dict[str, Any]) -> None:
        loaded = load_recipe(str(write_recipe(tmp_path, tiny_bagel, *steps)), find_pass, find_evaluation)
        check(loaded.recipe, open_source(str(tiny_bagel)))

    drop = {"pass": "layer_drop", "component": "understanding", "unit": "attention"}
    checked(STEP, STEP | {"component": "generation"}, drop | {"drop": [0]})
    with pytest.raises(PlanError, match=r"no layer 9 of 0 to 2[^$]*step: 02-head_prune"):
        checked(STEP, {"pass": "head_prune", "component": "generation", "keep_ratio": 0.5, "layers": 9})
    with pytest.raises(PlanError, match=r"2 problems of the rec[^$]*01-channel_prune: .*no layer 8[^$]*02-channel"):
        checked(STEP | {"layers": "8"}, STEP | {"layers": "9"})
    # Which attention the first step drops, its measurement decides: the second may find its own there.
    checked(drop | {"drop_count": 1}, drop | {"drop": [2]})


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (None, "there is no file"),
        ("import nothing_there", "does not import: ModuleNotFoundError"),
        ("def (:", "SyntaxError"),
        ("import sys; sys.exit(3)", "does not import: SystemExit: 3"),
        ("class Own: pass", "derive the class from umcompress.extend.Pass"),
        ("class Others: pass", "has no Own"),
    ],
)
def test_passes_in_files(
    code: str | None, found: str, refused: Refused, tiny_bagel: Path, tmp_path: Path
) -> None:
    if code is not None:
        (tmp_path / "own.py").write_text(code, encoding="utf-8")
    path = write_recipe(tmp_path, tiny_bagel, {"pass": "own.py:Own"})
    refused("plan", path, contains=(f"{path}:", "steps.0.pass", found))


def test_a_pass_that_ends_the_process(tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = "    def plan(self, graph, statistics):\n        raise SystemExit"
    code = f"class Own(Pass):\n    name: ClassVar[str] = 'own'\n{plan}"
    head = "from typing import ClassVar\nfrom umcompress.extend import Pass\n"
    (tmp_path / "own.py").write_text(head + code, encoding="utf-8")
    assert main(["plan", str(write_recipe(tmp_path, tiny_bagel, {"pass": "own.py:Own"}))]) == 1
    said = capsys.readouterr().err
    assert f"sys.exit(None) in {tmp_path / 'own.py'}, line 6" in said
    # Asking for help is no failure.
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--help"])


# -- models -----------------------------------------------------------------------------------------------


def test_models_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    for command in (["inspect"], ["evaluate"], ["ask", "p.png", "how?"], ["generate", "a red circle"]):
        name, *rest = command
        refused(name, "bagel-mni", *rest, contains=("did you mean 'bagel-mini'?",))
        refused(name, tmp_path / "nowhere", *rest, contains=("no such folder", "built-in model: bagel-mini"))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("inspect", empty, contains=("no known kind; it holds nothing", "known kinds: bagel"))
    (empty / "config.json").write_text("{}", encoding="utf-8")
    refused("evaluate", empty, contains=("config.json does not say what model it is",))
    refused("inspect", empty / "config.json", contains=("a file, not a folder",))
    refused("inspect", "a" * 5000, contains=("no such built-in model",))


def test_a_folder_that_lacks_files(refused: Refused, model: Path, picture: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.bak")
    refused("ask", model, picture, "how?", contains=("neither tokenizer.json nor vocab.json",))
    (model / "tokenizer.json").write_text("{}", encoding="utf-8")
    refused("ask", model, picture, "how?", contains=("tokenizer.json is not readable",))
    (model / "ae.safetensors").unlink()
    refused("ask", model, picture, "how?", contains=("no ae.safetensors",))
    refused("inspect", model, contains=("no ae.safetensors",))
    refused("plan", write_recipe(tmp_path, model, STEP), contains=("no ae.safetensors",))
    (model / "vit_config.json").unlink()
    refused("evaluate", model, contains=("no known kind", "vit_config.json"))


def test_all_tensors_that_are_wrong_are_listed(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = model / "ema.safetensors"
    tensors = load_file(file)
    tensors["surplus"] = tensors.pop("vae2llm.weight")
    del tensors["language_model.model.norm.weight"]
    tensors["llm2vae.bias"] = tensors["llm2vae.bias"][:-1].clone()
    save_file(tensors, file)
    recipe = write_recipe(tmp_path, model, STEP)
    commands = ["inspect", model], ["plan", recipe], ["ask", model, picture, "how?"], ["evaluate", model]
    for command in (*commands, ["apply", recipe, "-o", tmp_path / "out"]):
        assert main([str(word) for word in command]) == 2
        said = capsys.readouterr().err
        assert "ema.safetensors: missing language_model.model.norm.weight" in said
        assert "ema.safetensors: missing vae2llm.weight" in said
        assert "ema.safetensors: unexpected surplus" in said
        assert "llm2vae.bias is [63], expected [64]" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("content", [b"", b"not safetensors" * 9, None], ids=["empty", "other", "cut"])
def test_damaged_weights(content: bytes | None, refused: Refused, model: Path, picture: Path) -> None:
    for name in ("ae.safetensors", "ema.safetensors"):
        file = model / name
        file.write_bytes(file.read_bytes()[:-1000] if content is None else content)
        refused("ask", model, picture, "how?", contains=(name,))
        refused("inspect", model, contains=(name,))


@pytest.mark.parametrize(
    ("file", "values", "found"),
    [
        ("llm_config.json", "{", "JSON in"),
        ("llm_config.json", "\xff", "JSON in"),
        ("llm_config.json", "{}", "text.hidden_size: Field required\n    text.num_hidden_layers: Field"),
        ("llm_config.json", {"hidden_size": "wide"}, "text.hidden_size: Input should be a valid integer"),
        ("llm_config.json", {"num_attention_heads": 7}, "64 is no multiple of num_attention_heads 7"),
        ("llm_config.json", {"num_key_value_heads": 3}, "is no multiple of num_key_value_heads 3"),
        ("llm_config.json", {"vocab_size": 0}, "text.vocab_size: Input should be greater than 0"),
        ("vit_config.json", {"num_attention_heads": 5}, "vision: hidden_size 48 is no multiple of"),
        ("extra.json", "[]", "a JSON object in"),
        ("extra.json", {"vae": {"ch": 10}}, "autoencoder.ch: Input should be a multiple of 32"),
        ("umcompress.json", "{}", "base: Field required"),
    ],
)
def test_configurations(file: str, values: Any, found: str, refused: Refused, model: Path) -> None:
    path = model / file
    if isinstance(values, str):
        path.write_bytes(values.encode("latin-1"))
    else:
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    said = refused("inspect", model, contains=(found,))
    assert "pydantic" not in said


# -- everything else --------------------------------------------------------------------------------------


def test_a_recipe_put_right_goes_on_where_nothing_was_computed(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that stops before its first step must not hold its folder against the corrected recipe."""
    out = tmp_path / "out"
    layer_drop = {"pass": "layer_drop", "component": "understanding", "unit": "attention", "drop_count": 1}
    recipe = write_recipe(tmp_path, tiny_bagel, layer_drop, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(out)]) == 2
    assert "names no evaluation and no calibration source" in capsys.readouterr().err
    del layer_drop["drop_count"]
    recipe = write_recipe(tmp_path, tiny_bagel, layer_drop | {"drop": [1]}, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(out)]) == 0
    assert (out / "recipe.yaml").read_text() == recipe.read_text()


def test_output_folders_that_are_not_ours(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bagel, STEP)
    foreign, damaged, other = (tmp_path / name for name in ("foreign", "damaged", "other"))
    for folder, name, text in (
        (foreign, "thesis.txt", "mine"),
        (damaged, "run.json", "{"),
        (other, "run.json", '{"fingerprint": "x"}'),
    ):
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
    (other / "steps").mkdir()
    for output, found in {
        foreign: "not empty, and no run of umcompress",
        damaged: "run.json is damaged",
        other: "a run of another recipe",
        recipe: "a file of that name",
        recipe / "below": "it cannot be made",
    }.items():
        assert main(["apply", str(recipe), "-o", str(output)]) == 2
        said = capsys.readouterr().err
        assert found in said
        assert "Traceback" not in said
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_pictures(refused: Refused, tiny_bagel: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.png"
    words.write_text("no picture", encoding="utf-8")
    refused("ask", tiny_bagel, tmp_path / "nowhere.png", "how?", contains=("no such file",))
    refused("ask", tiny_bagel, words, "how?", contains=("not readable as a picture",))
    refused("ask", tiny_bagel, tmp_path, "how?", contains=("not readable as a picture",))
    prompt = "a red circle"
    refused("generate", tiny_bagel, prompt, "-o", tmp_path / "no" / "x.png", contains=("there is no folder",))
    refused("generate", tiny_bagel, prompt, "-o", tmp_path / "x.y", contains=("no picture format '.y'",))
    (tmp_path / "mine.png").write_bytes(b"mine")
    refused("generate", tiny_bagel, prompt, "-o", tmp_path / "mine.png", contains=("it exists already", "--force"))
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    refused("generate", tiny_bagel, prompt, "--guidance", "nan", contains=("'nan' is not a number",))
    refused("generate", tiny_bagel, prompt, "--steps", "0", contains=("whole number above 0",))


def test_evaluations_and_devices(refused: Refused, tiny_bagel: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    refused("evaluate", tiny_bagel, "--evaluation", "scens", contains=("did you mean 'scenes'?",))
    refused("evaluate", tiny_bagel, "-o", file, contains=("it cannot be made",))
    import torch

    if not torch.cuda.is_available():
        refused("evaluate", tiny_bagel, "--device", "cuda", contains=("finds no CUDA device",))


def test_as_a_process(tmp_path: Path) -> None:
    """The exit code is that of the process, and nothing is left behind."""
    recipe = write_recipe(tmp_path, tmp_path / "nowhere", STEP)
    command = [sys.executable, "-m", "umcompress", "apply", str(recipe), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{recipe}:2: model: the model {tmp_path}/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

"""Folders as people have them: weights of other programs beside the safetensors, adapters, quantized models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import TEXT, ZOO
from safetensors.torch import load_file, save_file

from umcompress.cli.main import main
from umcompress.errors import ModelError
from umcompress.models.save import side_files
from umcompress.models.source import open_source

# What the folder of GPT-2 on the hub holds, and what others do.
OTHERS = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
    "64.tflite", "consolidated.00.pth", "model-q4.gguf", "model.onnx", "training_args.bin", "optimizer.pt",
)  # fmt: skip


def test_weights_of_other_programs_are_not_carried_along(tmp_path: Path) -> None:
    """They are the unpruned ones: transformers reads pytorch_model.bin where the safetensors are lost."""
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    wanted = set(side_files(folder))
    assert {"config.json", "tokenizer.json"} <= wanted
    for name in (*OTHERS, "LICENSE", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (folder / name).write_bytes(b"x")
    found = set(side_files(folder))
    assert found == wanted | {"LICENSE", "chat_template.jinja", "merges.txt", "tokenizer.model"}


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "fp8"])
def test_a_quantized_model_is_refused_by_name(method: str, tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(ModelError, match=rf"quantized \({method}") as refused:
        open_source(str(folder)).skeleton()
    assert "quantize the result" in refused.value.do


@pytest.mark.parametrize("named", [7, {"a": 1}, "LlamaForCausalLM", [{"a": 1}], [None]])
def test_what_names_no_class_is_told_of(named: object, tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": named}))
    with pytest.raises(ModelError, match=r"architectures: .*a list of class names"):
        open_source(str(folder)).skeleton()


def test_more_layers_than_any_model_has_are_not_built(tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for layers in (10**7, 10**30):
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        with pytest.raises(ModelError, match="num_hidden_layers: 10"):
            open_source(str(folder)).skeleton()


def test_a_tokenizer_that_its_library_cannot_read_is_told_of(tmp_path: Path) -> None:
    """The library raises Exception itself."""
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"decoder": 3}))
    source = open_source(str(folder))
    with pytest.raises(ModelError, match="the tokenizer of"):
        source.runner(source.load()).tokenizer.ids("a")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="adapter") as refused:
        open_source(str(tmp_path))
    assert "merge_and_unload" in refused.value.do


def test_what_git_cloned_without_its_weights_is_said_to_be_that(tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123456\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(ModelError, match="pointer of git-lfs") as refused:
        open_source(str(folder)).skeleton()
    assert "git lfs pull" in refused.value.do


@pytest.mark.parametrize(("content", "said"), [
    (b"", "config.json is not JSON: Expecting value"), (b"{", "config.json is not JSON"),
    ('{"model_type": "é"'.encode("latin-1"), "config.json is not JSON"), (b"[1]", "it has no model_type"),
    (b"{}", "it has no model_type"), (b'{"model_type": 5}', "config.json has model_type: 5"), (None, "cannot be read"),
    (b'{"_class_name": "SomeTransformer2DModel"}', "one part of a pipeline of diffusers, SomeTransformer2DModel"),
])  # fmt: skip
def test_what_is_wrong_with_a_configuration_is_said(content: bytes | None, said: str, tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    (folder / "config.json").unlink()
    if content is None:
        (folder / "config.json").mkdir()
    else:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError) as refused:
        open_source(str(folder))
    assert said in refused.value.found


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("command", [["inspect"], ["apply"], ["apply", "--out-of-core"]])
def test_weights_that_are_no_numbers_to_compute_with_are_refused(
    dtype: torch.dtype, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantized ones, of which the configuration says nothing."""
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].to(dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert main([command[0], *command_line(command, folder, tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{name} is stored as" in said and "Traceback" not in said


@pytest.mark.parametrize("more", [[], ["--out-of-core"]])
def test_weights_that_a_link_no_longer_leads_to_are_missing(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a cache of the hub whose blobs were removed."""
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/0123")
    (folder / "notes.json").mkdir()
    assert main(["apply", *command_line(["apply", *more], folder, tmp_path)]) == 2
    assert "no model.safetensors" in capsys.readouterr().err


def command_line(command: list[str], folder: Path, home: Path) -> list[str]:
    if command == ["inspect"]:
        return [str(folder)]
    drop = {"pass": "layer_drop", "component": "shared", "unit": "block", "drop": [1]}
    return [str(write_recipe(home, folder, drop, evaluate=[])), "-o", str(home / "run"), *command[1:]]


@pytest.mark.parametrize("more", [[], ["--out-of-core"]])
def test_a_tokenizer_with_more_words_than_the_model_is_refused(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = hf.LlamaConfig(**TEXT | {"vocab_size": 40})
    folder = write_folder(hf.LlamaForCausalLM(config), tmp_path / "model")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 300, encoding="utf-8")
    evaluate = [] if more else [{"perplexity": {"data": str(tmp_path / "text.txt"), "window": 16}}]
    calibration = {"data": str(tmp_path / "text.txt"), "samples": 2}
    drop = {"pass": "layer_drop", "component": "shared", "unit": "block", "drop_count": 1}
    recipe = write_recipe(tmp_path, folder, drop, evaluate=evaluate, calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), *more]) == 2
    assert "the model has 40 embeddings" in capsys.readouterr().err

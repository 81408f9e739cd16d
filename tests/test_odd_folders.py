"""Folders as people have them: weights of other programs beside the safetensors, adapters, quantized models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hf_models import write_folder
from hf_zoo import ZOO

from umcompress.errors import ModelError
from umcompress.opening import open_source
from umcompress.rewrite.store import side_files

# What the folder of GPT-2 on the hub holds, and what others do.
OTHERS = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
    "64.tflite", "consolidated.00.pth", "model-q4.gguf", "model.onnx", "training_args.bin", "optimizer.pt",
)  # fmt: skip


def test_weights_of_other_programs_are_not_carried_along(tmp_path: Path) -> None:
    """They are the unpruned ones: transformers reads pytorch_model.bin where the safetensors are lost."""
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    wanted = {path.name for path in side_files(folder)}
    assert {"config.json", "tokenizer.json"} <= wanted
    for name in (*OTHERS, "LICENSE", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (folder / name).write_bytes(b"x")
    found = {path.name for path in side_files(folder)}
    assert found == wanted | {"LICENSE", "chat_template.jinja", "merges.txt", "tokenizer.model"}


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "fp8"])
def test_a_quantized_model_is_refused_by_name(method: str, tmp_path: Path) -> None:
    folder = write_folder(ZOO["llama"].build(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(ModelError, match=rf"quantized \({method}") as refused:
        open_source(str(folder)).skeleton()
    assert "quantize the result" in refused.value.do


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

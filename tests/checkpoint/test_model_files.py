"""Which files of a model folder its outputs may depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from umcompress.checkpoint.digests import model_files


@pytest.mark.parametrize("code", [False, True])
def test_weights_configurations_and_trusted_code_count(code: bool, tmp_path: Path) -> None:
    """Not what is read by people, checkpoints of a training beside the model, or what Python compiles of its code."""
    counts = ["config.json", "model.safetensors", "part/tokenizer.model"]
    aside = ["README.md", "part/__pycache__/x.cpython-311.pyc", "checkpoint-5/model.safetensors"]
    for name in [*counts, *aside, "modeling_x.py", "__pycache__/modeling_x.cpython-311.pyc"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = {str(file.relative_to(tmp_path)) for file in model_files(tmp_path, code)}
    assert found == {*counts, *(["modeling_x.py"] if code else [])}

"""Transformers in one file with the names of their first release, read back by diffusers' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import edited, output, stored
from pipeline_zoo import ZOO
from safetensors import safe_open

from umcompress.documents.plan import DropBlock, KeepChannels
from umcompress.errors import UsageError
from umcompress.models.pipelines.first_names import first_names, known_classes
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.run.export import export

diffusers = pytest.importorskip("diffusers")

# A name of the first release of each, that diffusers has otherwise or fused.
NAMES = {
    "Qwen-Image": "transformer_blocks.0.attn.to_q.weight",
    "FLUX.2": "double_blocks.0.txt_attn.qkv.weight",
    "Stable Diffusion 3.5 (two attentions)": "joint_blocks.0.x_block.attn2.qkv.weight",
    "Z-Image": "context_refiner.1.attention.qkv.weight",
    "Wan": "blocks.1.modulation",
    "LTX-Video": "transformer_blocks.0.attn1.q_norm.weight",
    "AuraFlow": "double_layers.0.attn.w2q.weight",
}
# Of these diffusers' reader knows one width alone.
WIDE: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "FluxTransformer2DModel": (
        {"num_layers": 2, "num_single_layers": 1, "guidance_embeds": True}, "single_blocks.0.linear1.weight",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    ),
    "ChromaTransformer2DModel": (
        {"num_layers": 1, "num_single_layers": 1}, "double_blocks.0.txt_attn.qkv.bias",
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ),
    "Lumina2Transformer2DModel": (
        {"num_layers": 1}, "layers.0.attention.qkv.weight", ("attn.to_q", "attn.to_k", "attn.to_v"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_reads_the_file_and_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    denoiser = next(one for one in ZOO if one.name == name)
    source = stored(name)
    stack = next(iter(source.family.stacks(source.skeleton()).values()))
    shorter: Any = edited(source, [DropBlock(block=f"{stack}.0")])
    plain = source.family.plain(shorter, source.folder, ())
    ours, folder = output(denoiser, shorter.transformer), tmp_path / "run"
    if isinstance(plain, Plain):
        save_plain(plain, folder, source.folder)
    else:  # Two stacks have one field for their numbers.
        whole: Any = source.load()
        ours, folder = output(denoiser, whole.transformer), source.folder
    lines = export(str(folder), "single-file", tmp_path / "out")
    assert "from_single_file" in lines[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"transformer", "transformer.safetensors"}
    file = tmp_path / "out" / "transformer.safetensors"
    with safe_open(file, "pt") as written:
        assert NAMES[name] in written.keys()  # noqa: SIM118
    read = getattr(diffusers, denoiser.kind).from_single_file(
        str(file), config=str(tmp_path / "out"), subfolder="transformer", local_files_only=True
    )
    assert not any(parameter.is_meta for parameter in read.parameters())
    assert torch.equal(output(denoiser, read.eval()), ours)


@pytest.mark.parametrize("kind", WIDE)
def test_names_of_models_of_the_one_width_that_diffusers_reads(kind: str) -> None:
    """Rows are all that is moved: of each, one number stands for all of its columns."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    config, fused, parts = WIDE[kind]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = first_names(kind, shapes)
    assert not isinstance(found, str)
    assert all(row.name.endswith(f"{part}.{fused.rpartition('.')[2]}")
               for row, part in zip(found[fused], parts, strict=True))  # fmt: skip
    ours = {name: torch.rand(shape[0], *[1] * (len(shape) - 1)) for name, shape in shapes.items()}
    file = {first: torch.cat([ours[row.name][row.start : row.stop] for row in rows]) for first, rows in found.items()}
    read = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"](checkpoint=file, config={})
    assert read.keys() == ours.keys() and all(torch.equal(read[name], value) for name, value in ours.items())


def test_what_has_no_first_names_is_refused_with_those_that_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        export(str(stored("PixArt").folder), "single-file", tmp_path / "out")
    assert all(kind in refused.value.found for kind in known_classes()) and not (tmp_path / "out").exists()
    assert "umcompress.load" in refused.value.do  # there is no other layout


def test_a_width_that_diffusers_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit this FluxTransformer2DModel"):
        export(str(stored("FLUX.1").folder), "single-file", tmp_path / "out")


def test_what_a_configuration_does_not_say_is_refused() -> None:
    source = stored("Qwen-Image")
    site = "transformer.transformer_blocks.0.img_mlp.net"
    model = edited(source, [KeepChannels(site=site, keep=tuple(range(96)))])
    assert "no field" in str(source.family.laid_out("single-file", model, source.folder))

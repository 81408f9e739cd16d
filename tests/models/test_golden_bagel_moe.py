"""The golden folder of BAGEL-MoE, through the command that others will use; and that the command can fail."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_check import main
from places import DATA
from safetensors.torch import load_file, save_file

GOLDEN = DATA / "golden_bagel"
BLOCKS = ["gen_E4k2", "gen_E5S1k2", "und_E4k2", "gen_E3k1_odd"]
OUTPUTS = ["out.router", "out.router_selected_sorted", "out.zero_router", "grad.x", "legacy.out"]
EXPERT = "language_model.model.layers.1.mlp_moe_gen.experts.5.up_proj.weight"


def golden_check(folder: Path) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["bagel-moe", str(folder)])
    return code, out.getvalue()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder in its place beside the dense golden's files."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    return tmp_path / "golden" / "moe"


def change(file: Path, name: str, by: float = 0.01) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[0] += by if tensors[name].is_floating_point() else 1
    save_file(tensors, file)


def test_every_golden_tensor_is_met() -> None:
    code, printed = golden_check(GOLDEN / "moe")
    assert code == 0 and "FAIL" not in printed, printed
    for said in ("out.latents_cfg4", "out.mixed_text_vit", "legacy.out", "norm of grad.x", "shared_indices"):
        assert said in printed


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_one_changed_number_of_a_block_is_noticed(tmp_path: Path, block: str, kind: str) -> None:
    for file in (GOLDEN / "moe").glob("block_*"):
        shutil.copyfile(file, tmp_path / file.name)
    change(tmp_path / f"block_{block}.safetensors", kind)
    code, said = golden_check(tmp_path)
    assert code == 1
    assert f"FAIL block_{block}.safetensors: {kind} " in said


def test_other_channels_in_an_expert_are_noticed(copy: Path) -> None:
    change(copy / "block_gen_E5S1k2.safetensors", "expert_indices.3")
    code, said = golden_check(copy)
    assert code == 1 and "FAIL block_gen_E5S1k2.safetensors: expert_indices.3" in said


def test_other_experts_on_a_tie_are_other_outputs(copy: Path) -> None:
    file = copy / "block_gen_E4k2.safetensors"
    tensors = load_file(file)
    chosen = tensors["out.zero_router_selected"]
    tensors["out.zero_router_selected"] = torch.tensor(sorted(set(range(4)) - set(chosen.tolist())))
    save_file(tensors, file)
    code, said = golden_check(copy)
    assert code == 1 and "FAIL block_gen_E4k2.safetensors: out.zero_router " in said


def test_a_changed_output_of_the_model_is_noticed(copy: Path) -> None:
    change(copy / "full_t2i.safetensors", "out.velocity_nocfg")
    code, said = golden_check(copy)
    assert code == 1 and "FAIL full_t2i.safetensors: out.velocity_nocfg" in said


def test_a_changed_router_of_the_model_is_noticed(copy: Path) -> None:
    change(copy / "model" / "ema.safetensors", "language_model.model.layers.1.mlp_moe_gen.gate.weight", 5.0)
    code, said = golden_check(copy)
    assert code == 1 and "FAIL full_t2i.safetensors: out.latents_cfg4" in said


def test_a_lost_expert_is_named(copy: Path) -> None:
    file = copy / "model" / "ema.safetensors"
    tensors = load_file(file)
    del tensors[EXPERT]
    save_file(tensors, file)
    code, said = golden_check(copy)
    assert code == 1 and f"ema.safetensors: missing {EXPERT}" in said


def test_an_unknown_output_counts_as_unchecked(copy: Path) -> None:
    file = copy / "block_gen_E4k2.safetensors"
    save_file(load_file(file) | {"out.something_new": torch.zeros(2)}, file)
    code, said = golden_check(copy)
    assert code == 1 and "left unchecked" in said


def test_without_the_dense_golden_the_whole_model_is_not_passed_over(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "moe", tmp_path / "moe")
    code, said = golden_check(tmp_path / "moe")
    assert code == 1 and "no t2i.safetensors" in said


def test_sizes_come_from_the_folder(copy: Path) -> None:
    """Half of the rows, and one case less, is a folder of the same format."""
    meta = json.loads((copy / "block_meta.json").read_text())
    del meta["cases"]["und_E4k2"]
    (copy / "block_und_E4k2.safetensors").unlink()
    (copy / "block_meta.json").write_text(json.dumps(meta))
    for file in copy.glob("block_*.safetensors"):
        tensors = load_file(file)
        rows = {n: t[:6].contiguous() for n, t in tensors.items() if len(t) == 13 and not n.startswith("grad.")}
        kept = {n: t for n, t in tensors.items() if not n.startswith("grad.")}
        save_file(kept | rows, file)
    code, said = golden_check(copy)
    assert code == 0, said

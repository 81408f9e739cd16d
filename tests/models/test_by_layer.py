"""What a model looks up by the number of a layer, or hands from block to block, when blocks are gone.

References know no graph: transformers' own model, whose dropped block hands on what it was given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from _pico import pico
from hf_models import randomise

from umcompress.documents.plan import DropBlock, Plan
from umcompress.errors import ModelError, PlanError
from umcompress.models.hf.inputs import picture
from umcompress.models.hf.layers.fields_by_code import looked_up
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite

IDS = torch.tensor([[7, 31, 15, 42, 9, 27, 51, 33, 12, 44, 19]])


def saved(cls: Any, folder: Path, **given: Any) -> Any:
    """A pico model, saved and loaded by transformers."""
    model = cls(pico(cls.config_class, given)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return cls.from_pretrained(folder).eval()


def without(folder: Path, *blocks: str) -> tuple[Any, Any]:
    """The model of a folder with these blocks dropped, and its plain folder or why there is none."""
    source = open_source(str(folder))
    plan = Plan(pass_name="test", edits=tuple(DropBlock(block=block) for block in blocks))
    model = rewrite(source.load(), source.family, [plan])
    return model, source.family.plain(model, source.folder, [plan])


@torch.no_grad()
def logits(model: Any, **more: Any) -> torch.Tensor:
    return model(**{"input_ids": IDS, **more}).logits


def silent(model: Any, block: str, more: int = 0) -> Any:
    """The block hands on its stream, and so many arguments after it."""

    def hand_on(_: Any, args: Any, output: Any) -> Any:
        return (*args[: more + 1], *output[more + 1 :]) if isinstance(output, tuple) else args[0]

    model.get_submodule(block).register_forward_hook(hand_on)
    return model


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_list_that_only_the_code_shows_to_be_by_layer(tmp_path: Path) -> None:
    """Granite's `layer_rope_theta[i]` says which layers know positions; the name says nothing to us."""
    thetas = [10000.0, 0, 0, 100.0]
    theirs = saved(hf.GraniteSWAForCausalLM, tmp_path / "m", layer_rope_theta=thetas)
    ours, plain = without(tmp_path / "m", "model.layers.1")
    assert ours.config.layer_rope_theta == [10000.0, 0, 100.0]
    assert (logits(ours) - logits(theirs)).abs().max() > 1e-3
    close(logits(ours), logits(silent(theirs, "model.layers.1")))
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "out", tmp_path / "m")
    assert torch.equal(logits(hf.GraniteSWAForCausalLM.from_pretrained(tmp_path / "out").eval()), logits(ours))


def test_what_the_code_asks_of_layer_numbers() -> None:
    with torch.device("meta"):
        granite = hf.GraniteSWAForCausalLM(pico(hf.GraniteSWAConfig)).model
        llama4 = hf.Llama4ForCausalLM(pico(hf.Llama4TextConfig)).model
    assert "layer_rope_theta" in looked_up(granite, granite.layers).entries
    assert "moe_layers" in looked_up(llama4, llama4.layers).numbers


def test_the_state_of_a_router_is_handed_on(tmp_path: Path) -> None:
    """ZAYA: a block gives its router's state to the next one, beside the stream."""
    theirs = saved(hf.ZayaForCausalLM, tmp_path / "m")
    ours, plain = without(tmp_path / "m", "model.layers.1")
    close(logits(ours), logits(silent(theirs, "model.layers.1", more=1)))
    assert isinstance(plain, Plain)


SHARED = {"kv_source_layers": [0, 0, 2, 2, 4], "no_rope_layers": [1] * 5, "num_hidden_layers": 5, "mlp_layer_types":
          ["dense"] * 5, "indexer_types": ["full"] * 5, "layer_types": ["indexed_attention"] * 5}  # fmt: skip
LENDING = "model.language_model.layers."


def sharing(folder: Path) -> Any:
    """Layers 1 and 3 use the keys and values of 0 and 2."""
    text = pico(hf.MistralLarge4TextConfig, SHARED)
    return saved(hf.MistralLarge4ForConditionalGeneration, folder, text_config=text)


def test_a_configuration_that_says_whose_keys_a_layer_uses(tmp_path: Path) -> None:
    theirs = sharing(tmp_path / "m")
    ours, plain = without(tmp_path / "m", f"{LENDING}1")
    assert ours.config.text_config.kv_source_layers == [0, 1, 1, 3]
    close(logits(ours), logits(silent(theirs, f"{LENDING}1")))
    # Layer 0 still keeps what nobody borrows: a module built anew would not.
    assert isinstance(plain, str) and "store_full_length_kv" in plain


def test_a_lender_stays_unless_its_borrowers_go_too(tmp_path: Path) -> None:
    theirs = sharing(tmp_path / "m")
    with pytest.raises(PlanError, match="blocks above use their keys and values"):
        without(tmp_path / "m", f"{LENDING}2")
    ours, plain = without(tmp_path / "m", f"{LENDING}2", f"{LENDING}3")
    assert ours.config.text_config.kv_source_layers == [0, 0, 2] and isinstance(plain, Plain)
    close(logits(ours), logits(silent(silent(theirs, f"{LENDING}2"), f"{LENDING}3")))


def test_pictures_go_into_the_same_language_blocks(tmp_path: Path) -> None:
    """Granite Vision's configuration names blocks 0, 2 and 3: 2 and 3 become 1 and 2, and none of them may go."""
    theirs = saved(hf.Granite4VisionForConditionalGeneration, tmp_path / "m")
    pixels = picture(theirs)
    assert pixels is not None
    (_, seen), *_ = theirs.model.get_image_features(**pixels).deepstack_features
    ids = torch.cat([torch.full((1, len(seen[0])), theirs.config.image_token_id), IDS], 1)
    language = "model.language_model.layers."
    ours, plain = without(tmp_path / "m", f"{language}1")
    assert (ours.config.deepstack_layer_map, ours.config.spatial_target_layers) == ([[-2, 0]], [1, 1, 2, 2])
    assert isinstance(plain, Plain)
    close(logits(ours, input_ids=ids, **pixels), logits(silent(theirs, f"{language}1"), input_ids=ids, **pixels))
    with pytest.raises(PlanError, match="through blocks 0, 2, 3 one to one"):
        without(tmp_path / "m", f"{language}2")
    # Its projectors, one for each of these, are no stack of blocks.
    stacks = open_source(str(tmp_path / "m")).family.stacks(theirs)
    assert set(stacks.values()) == {language[:-1], "model.vision_tower.encoder.layers"}


def test_vision_blocks_that_a_connector_reads_out_of(tmp_path: Path) -> None:
    """Molmo 2's adapter reads blocks 3 and 1 of the tower: they stay, and are 2 and 1 when another goes."""
    saved(hf.Molmo2ForConditionalGeneration, tmp_path / "m")
    tower = "model.vision_tower.layers."
    ours, plain = without(tmp_path / "m", f"{tower}2")
    assert ours.config.adapter_config.vision_feature_layer == [2, 1]
    assert ours.config.vision_config.num_hidden_layers == 3 and isinstance(plain, Plain)
    with pytest.raises(PlanError, match="through blocks 1, 3 one to one"):
        without(tmp_path / "m", f"{tower}1")


@pytest.mark.parametrize(("tap", "gone", "moved"), [(-2, 3, -1), (-2, 2, -2), (-2, 0, -2), (3, 0, 2), (1, 3, 1)])
def test_a_tower_whose_own_configuration_says_where_it_is_read(
    tap: int, gone: int, moved: int, tmp_path: Path
) -> None:
    """Phi-4 reads pictures before the last block of the tower; the module that does so noted it when it was made."""
    vision = pico(hf.Phi4MultimodalVisionConfig, {"feature_layer": tap})
    theirs = saved(hf.Phi4MultimodalForCausalLM, tmp_path / "m", vision_config=vision)
    tower = "model.embed_tokens_extend.image_embed.img_processor.encoder.layers."
    ours, plain = without(tmp_path / "m", f"{tower}{gone}")
    assert ours.config.vision_config.feature_layer == moved and isinstance(plain, Plain)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = [
        model.model.embed_tokens_extend.image_embed.get_img_features(pixels)
        for model in (ours, silent(theirs, f"{tower}{gone}"))
    ]
    close(*found)


@torch.no_grad()
@pytest.mark.parametrize(
    ("stack", "gone", "read", "counts"),
    [("transformer", 0, [0, 2], (3, 2)), ("transformer", 2, [1, 2], (3, 2)), ("global_transformer", 1, [1, 3], (4, 1))],
)
def test_blocks_that_are_read_beside_the_last(
    stack: str, gone: int, read: list[int], counts: tuple[int, int], tmp_path: Path
) -> None:
    """Llama 3.2 reads vision blocks 1 and 3 beside the last; a second stack has the same configuration."""
    vision = pico(hf.MllamaVisionConfig, {
        "intermediate_layers_indices": [1, 3], "num_hidden_layers": 4, "num_global_layers": 2,
        "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1,
    })  # fmt: skip
    theirs = saved(hf.MllamaForConditionalGeneration, tmp_path / "m", vision_config=vision)
    tower = f"model.vision_model.{stack}.layers."
    ours, plain = without(tmp_path / "m", f"{tower}{gone}")
    config = ours.config.vision_config
    assert config.intermediate_layers_indices == read and isinstance(plain, Plain)
    assert (config.num_hidden_layers, config.num_global_layers) == counts
    theirs.get_submodule(f"{tower}{gone}").forward = lambda hidden_states, **_: hidden_states
    pixels = {
        "pixel_values": torch.randn(1, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long), "aspect_ratio_mask": torch.ones(1, 1, 1),
    }  # fmt: skip
    save_plain(plain, tmp_path / "out", tmp_path / "m")
    again = hf.MllamaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    found, wanted, loaded = (model.model.vision_model(**pixels).last_hidden_state for model in (ours, theirs, again))
    close(found, wanted)
    assert torch.equal(found, loaded)
    with pytest.raises(PlanError, match="through blocks 1, 3 one to one"):
        without(tmp_path / "m", "model.vision_model.transformer.layers.3")


def test_towers_of_one_configuration_stay(tmp_path: Path) -> None:
    """With three blocks of four the image tower of Video-LLaVA would give nothing."""
    theirs = saved(hf.VideoLlavaForConditionalGeneration, tmp_path / "m")
    with pytest.raises(PlanError, match=r"image_tower\S* has as many blocks by the same num_hidden_layers"):
        without(tmp_path / "m", "model.video_tower.encoder.layers.1")
    ours, _ = without(tmp_path / "m", "model.language_model.layers.1")
    close(logits(ours), logits(silent(theirs, "model.language_model.layers.1")))


def test_a_configuration_that_transformers_refuses_is_no_plain_one(tmp_path: Path) -> None:
    saved(hf.Qwen2ForCausalLM, tmp_path / "m")
    source = open_source(str(tmp_path / "m"))
    model: Any = source.load()
    model.config.layer_types = [*model.config.layer_types, "full_attention"]
    plain = source.family.plain(model, source.folder, [])
    assert isinstance(plain, str) and "does not build it" in plain and "`layer_types` (5)" in plain


def test_stacks_that_are_one_are_refused(tmp_path: Path) -> None:
    """DiffusionGemma reads a prompt and cleans a canvas with the same blocks."""
    saved(hf.DiffusionGemmaForBlockDiffusion, tmp_path / "m")
    source = open_source(str(tmp_path / "m"))
    with pytest.raises(ModelError, match="have the same weights"):
        source.runner(source.load())

"""Pico models of transformers that answer questions about pictures, with tokenizer and processor in their folders."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import transformers as hf
from hf_models import randomise, tokenizer
from hf_zoo import MROPE, TEXT, VISION
from PIL import Image

# Ids after the characters: what each processor asks its tokenizer for.
WORDS = [
    "<image>", "<vision>", "</vision>", "<video>", "<boi>", "<eoi>", "<fake_token_around_image>", "<global-img>",
    "<end_of_utterance>", "<|image|>", "<|IMG_PATCH|>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]  # fmt: skip
IMAGE, VISION_BEGIN, VISION_END, VIDEO, BOI, EOI = range(96, 102)
PATCH = 106
VOCABULARY = 128
LANGUAGE = TEXT | {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ turn['role'] }}:{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """How to build a model; its processor's class, and what that is made of."""

    model: Callable[[], Any]
    processor: str
    image_processor: str
    options: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    # What stands for a picture in a chat; None: no chat template.
    place: str | None = "<image>"
    # Of the weights: such that answers differ.
    seed: int = 0


def _qwen(kind: str, **vision: Any) -> Any:
    sizes = {
        "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, **vision,
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_BEGIN,
           "vision_end_token_id": VISION_END}  # fmt: skip
    text = LANGUAGE | {"rope_parameters": MROPE} | ({"head_dim": 8} if kind.startswith("Qwen3") else {})
    if kind == "Qwen3VLMoe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0, 3]}
    config = getattr(hf, f"{kind}Config")(text_config=text, vision_config=sizes, **ids)
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


def _glm4v() -> Any:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "image_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
    }  # fmt: skip
    ids: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": VISION_BEGIN,
           "image_end_token_id": VISION_END}  # fmt: skip
    text = LANGUAGE | {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}
    return hf.Glm4vForConditionalGeneration(hf.Glm4vConfig(text_config=text, vision_config=vision, **ids))


def _joined(kind: str, text: str, vision: dict[str, Any] | None = None, **more: Any) -> Any:
    """A language model behind a vision tower; `text` names the kind of language model."""
    own = ("head_dim", "query_pre_attn_scalar", "sliding_window")
    words = LANGUAGE | {"model_type": text} | {name: more.pop(name) for name in own if name in more}
    seen = (vision or {"model_type": "clip_vision_model"} | VISION | {"projection_dim": 32})
    config = getattr(hf, f"{kind}Config")(text_config=words, vision_config=seen, **more)
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


SIGLIP = VISION | {"model_type": "siglip_vision_model"}
SQUARE = {"height": 16, "width": 16}
CLIP: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": SQUARE}
INTERN = VISION | {"image_size": [16, 16], "patch_size": [4, 4], "model_type": "internvl_vision"}
LAYERS: dict[str, Any] = {"vision_feature_layer": -1, "image_token_index": IMAGE, "image_token_id": IMAGE}
QWEN_MARKS = {"image_token": "<image>", "video_token": "<video>", "vision_bos_token": "<vision>",
              "vision_eos_token": "</vision>"}  # fmt: skip
QWEN_OPTIONS = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 1024,
                "size": {"shortest_edge": 64, "longest_edge": 1024}}  # fmt: skip
_GRID: dict[str, Any] = {"image_grid_pinpoints": [[16, 16], [16, 32], [32, 16]]}
_IDEFICS = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}

KINDS: dict[str, Kind] = {
    "qwen2_5_vl": Kind(
        partial(_qwen, "Qwen2_5_VL", intermediate_size=48, window_size=16, fullatt_block_indexes=[1],
                out_hidden_size=32),
        "Qwen2_5_VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", QWEN_OPTIONS, marks=QWEN_MARKS,
        place="<vision><image></vision>",
    ),
    "qwen2_vl": Kind(
        partial(_qwen, "Qwen2VL", embed_dim=32, mlp_ratio=2, hidden_size=32),
        "Qwen2VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", QWEN_OPTIONS, marks=QWEN_MARKS,
        place="<vision><image></vision>",
    ),
    "qwen3_vl": Kind(
        partial(_qwen, "Qwen3VL", intermediate_size=48, out_hidden_size=32, num_position_embeddings=16,
                deepstack_visual_indexes=[0, 1]),
        "Qwen3VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", QWEN_OPTIONS, marks=QWEN_MARKS,
        place="<vision><image></vision>",
    ),
    "qwen3_vl_moe": Kind(
        partial(_qwen, "Qwen3VLMoe", intermediate_size=48, out_hidden_size=32, num_position_embeddings=16,
                deepstack_visual_indexes=[0, 1]),
        "Qwen3VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil", QWEN_OPTIONS, marks=QWEN_MARKS,
        place="<vision><image></vision>",
    ),
    "glm4v": Kind(
        _glm4v, "Glm4vProcessor", "glm4v.Glm4vImageProcessorPil",
        {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
         "size": {"shortest_edge": 128, "longest_edge": 2048}},
        marks={"image_token": "<image>", "video_token": "<video>"}, place="<vision><image></vision>",
    ),
    "internvl": Kind(
        partial(_joined, "InternVL", "qwen2", INTERN, image_token_id=IMAGE, image_seq_length=4),
        "InternVLProcessor", "got_ocr2.GotOcr2ImageProcessorPil",
        {"size": SQUARE, "min_patches": 1, "max_patches": 3, "crop_to_patches": True}, {"image_seq_length": 4},
        {"start_image_token": "<boi>", "end_image_token": "<eoi>", "context_image_token": "<image>",
         "video_token": "<video>"}, seed=1,
    ),
    "llava": Kind(
        partial(_joined, "Llava", "llama", vision_feature_select_strategy="default", **LAYERS),
        "LlavaProcessor", "llava.LlavaImageProcessorPil", CLIP,
        {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "vipllava": Kind(
        partial(_joined, "VipLlava", "llama", vision_feature_layers=[-1, -2], image_token_index=IMAGE),
        "LlavaProcessor", "clip.CLIPImageProcessorPil", CLIP,
        {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_next": Kind(
        partial(_joined, "LlavaNext", "llama", vision_feature_select_strategy="default", **_GRID, **LAYERS),
        "LlavaNextProcessor", "llava_next.LlavaNextImageProcessorPil", CLIP | _GRID,
        {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}, place=None,
    ),
    "llava_onevision": Kind(
        partial(_joined, "LlavaOnevision", "qwen2", SIGLIP, vision_feature_select_strategy="full", **_GRID, **LAYERS,
                vision_aspect_ratio="anyres_max_9"),
        "LlavaOnevisionProcessor", "llava_onevision.LlavaOnevisionImageProcessorPil", {"size": SQUARE} | _GRID,
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        {"image_token": "<image>", "video_token": "<video>"},
    ),
    "gemma3": Kind(
        partial(_joined, "Gemma3", "gemma3_text", SIGLIP, head_dim=8, query_pre_attn_scalar=8, sliding_window=8,
                mm_tokens_per_image=4, boi_token_index=BOI, eoi_token_index=EOI, image_token_index=IMAGE),
        "Gemma3Processor", "gemma3.Gemma3ImageProcessorPil", {"size": SQUARE}, {"image_seq_length": 4},
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}, "<boi>",
    ),
    "idefics3": Kind(
        partial(_joined, "Idefics3", "llama", VISION | {"model_type": "idefics3_vision"}, scale_factor=2,
                image_token_id=IMAGE),
        "Idefics3Processor", "idefics3.Idefics3ImageProcessorPil", _IDEFICS, {"image_seq_len": 4},
    ),
    "paligemma": Kind(
        partial(_joined, "PaliGemma", "gemma", SIGLIP | {"projection_dim": 32}, head_dim=8, image_token_index=IMAGE,
                projection_dim=32, tie_word_embeddings=False),
        "PaliGemmaProcessor", "siglip.SiglipImageProcessorPil", {"size": SQUARE, "image_seq_length": 16}, place=None,
    ),
    "aya_vision": Kind(
        partial(_joined, "AyaVision", "cohere2", SIGLIP, downsample_factor=2, vision_feature_layer=-1,
                image_token_index=PATCH, image_token_id=PATCH),
        "AyaVisionProcessor", "got_ocr2.GotOcr2ImageProcessorPil",
        {"size": SQUARE, "min_patches": 1, "max_patches": 3, "crop_to_patches": True},
        {"patch_size": 4, "img_size": 16, "downsample_factor": 2, "image_token": "<image>"},
    ),
}  # fmt: skip


def words(marks: dict[str, str]) -> Any:
    core: Any = tokenizer()._tokenizer
    core.add_special_tokens(WORDS)
    make: Any = hf.PreTrainedTokenizerFast
    return make(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", padding_side="left", extra_special_tokens=marks,
    )  # fmt: skip


def model_of(name: str) -> Any:
    model = KINDS[name].model().eval()
    randomise(model, KINDS[name].seed)
    settings: Any = hf.GenerationConfig
    model.generation_config = settings(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


def write_seeing(name: str, folder: Path) -> Path:
    """Weights, tokenizer and processor in the files that released folders have."""
    kind = KINDS[name]
    model_of(name).save_pretrained(folder)
    made = words(kind.marks)
    if kind.place is not None:
        made.chat_template = TEMPLATE.replace("IMAGE", kind.place)
    made.save_pretrained(folder)
    module, _, rule = kind.image_processor.rpartition(".")
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    getattr(found, rule)(**kind.options).save_pretrained(folder)
    content = {"processor_class": kind.processor} | kind.more
    (folder / "processor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def by_hand(name: str, pictures: list[Any], question: str) -> dict[str, Any]:
    """What the processor makes of a question written out by hand, without the folder's files."""
    kind = KINDS[name]
    made = words(kind.marks)
    module, _, rule = kind.image_processor.rpartition(".")
    found = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    no_video = {"get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"])}
    sort: Any = type("Stills", (getattr(hf, kind.processor),), no_video)
    parts = [None] if "video_processor" in inspect.signature(getattr(hf, kind.processor).__init__).parameters else []
    processor = sort(getattr(found, rule)(**kind.options), made, *parts, **kind.more)
    shown = [Image.fromarray(picture) for picture in pictures]
    if kind.place is None:
        text, special = "<image>" * len(shown) + question, True
    else:
        text, special = f"<s>user:{kind.place * len(shown)}{question};a:", False
    call = processor(text=[text], images=[shown], return_tensors="pt", add_special_tokens=special)
    return {key: value for key, value in call.items() if key != "labels"}

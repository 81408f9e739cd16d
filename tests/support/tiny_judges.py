"""A Mask2Former and a CLIP of a few hundred thousand random weights, saved as the real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from umcompress.evals.pictures._detectors import CLASSES

PERSON, UMBRELLA = CLASSES.index("person"), CLASSES.index("umbrella")

COLOURED = ("a", "photo", "of", "red", "green", "blue", "yellow", "purple", "object", "and")


def write_tiny_mask2former(folder: Path, seed: int = 0, finds: dict[int, float] | None = None) -> Path:
    """A Mask2Former of COCO's 80 classes; `finds` raises the logit of some classes, so that they are found."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    torch.manual_seed(seed)
    stages: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    labels: dict[str, Any] = {"num_labels": 80}
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, **stages
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6, **labels,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for label, value in (finds or {}).items():
            model.class_predictor.bias[label] += value
        # Random masks are nowhere sure of themselves; these are.
        for parameter in model.model.transformer_module.decoder.mask_predictor.mask_embedder.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP whose tokenizer knows single letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={
            **tower, "vocab_size": len(words), "max_position_embeddings": 77,
            "bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"],
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def metadata() -> list[dict[str, Any]]:
    """GenEval's six kinds of prompts, each twice, about what the tiny detector can find."""
    one, two = {"class": "person", "count": 1}, {"class": "umbrella", "count": 1}
    rows = []
    for color, relation in (("red", "left of"), ("pink", "above")):
        include: dict[str, list[dict[str, Any]]] = {
            "single_object": [one] if color == "red" else [{"class": "zebra", "count": 1}],
            "two_object": [one, two],
            "counting": [{"class": "person", "count": 2}],
            "colors": [two | {"color": color}],
            "position": [one, two | {"position": [relation, 0]}],
            "color_attr": [one | {"color": color}, two | {"color": "blue"}],
        }
        for tag, clauses in include.items():
            extra = {"exclude": [{"class": "person", "count": 3}]} if tag == "counting" else {}
            rows.append({"tag": tag, "include": clauses, **extra, "prompt": f"a {color} circle and a square: {tag}"})
    return rows

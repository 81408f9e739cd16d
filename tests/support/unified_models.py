"""Pico Janus, Emu3 and Chameleon that see and paint, with tokenizer and processor as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from hf_models import randomise, tokenizer
from hf_zoo import ZOO
from torch import Tensor
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

NAMES = ("janus", "emu3", "chameleon")
# Ids after the characters.
MARKS = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "image_wrapper_token": "<img>",
         "eof_token": "<eof>"}  # fmt: skip
IMAGE, BEGIN, END, WRAPPER, EOF = range(96, 101)
FIRST_CODE, END_OF_ROW, VOCABULARY = 101, 117, 128
# height, width in codes
GRIDS = {"janus": (4, 4), "emu3": (4, 6), "chameleon": (8, 8)}


def model_of(name: str) -> Any:
    """As in the zoo, with words for pictures."""
    config = ZOO[name].build().config
    config.get_text_config().vocab_size = VOCABULARY
    if name == "emu3":
        names = {f"<|visual token {index:06d}|>": FIRST_CODE + index for index in range(16)}
        config.vocabulary_map = names | {"<image>": IMAGE, "<|extra_200|>": END_OF_ROW}
    if name == "chameleon":
        names = {f"IMGIMG{chr(65 + index // 10)}{chr(65 + index % 10)}Z": FIRST_CODE + index for index in range(16)}
        config.vocabulary_map = names | {"<image>": IMAGE}
    config.image_token_id = IMAGE
    model = getattr(hf, ZOO[name].build().__class__.__name__)(config).eval()
    randomise(model)
    settings = {"janus": {"boi_token_id": BEGIN}, "emu3": {"height": 8, "width": 12, "negative_prompt": "ugly"}}
    model.generation_config = hf.GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=1, eos_token_id=2, pad_token_id=0, generation_kwargs=settings.get(name, {})
    )
    return model


def processor_of(name: str) -> Any:
    words: Any = hf.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer()._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", sep_token="</s>", padding_side="left", extra_special_tokens=MARKS,
    )  # fmt: skip
    square = {"height": 16, "width": 16}
    if name == "janus":
        return hf.JanusProcessor(JanusImageProcessorPil(size=square), words, num_image_tokens=16)
    if name == "emu3":
        pictures = Emu3ImageProcessor(min_pixels=64, max_pixels=128, spatial_factor=2)
        return hf.Emu3Processor(pictures, words)  # type: ignore[no-untyped-call]
    rule = ChameleonImageProcessorPil(size={"shortest_edge": 16}, crop_size=square)
    return hf.ChameleonProcessor(rule, words, image_seq_length=64)


def write_unified(name: str, folder: Path) -> Path:
    model_of(name).save_pretrained(folder)
    processor_of(name).save_pretrained(folder)
    return folder


def whole(runner: Any, name: str, ids: list[int], codes: list[int], last: int) -> Tensor:
    """Logits of the next code after `codes`, the whole read at once without a cache. last: row width."""
    model = runner.model
    if name == "janus":
        words = model.get_input_embeddings()(torch.tensor([ids]))
        seen = model.prepare_embeddings_for_image_generation(torch.tensor([codes], dtype=torch.long))
        hidden = model.model.language_model(inputs_embeds=torch.cat([words, seen], 1), use_cache=False)
        logits: Tensor = model.model.generation_head(hidden.last_hidden_state[0, -1])
        return logits
    rows = list(ids)
    for place, code in enumerate(codes):
        rows.append(FIRST_CODE + code)
        if name == "emu3" and (place + 1) % last == 0:
            rows.append(END_OF_ROW)
    body = model.model
    hidden = body(input_ids=torch.tensor([rows]), use_cache=False).last_hidden_state[0, -1]
    of_codes: Tensor = model.lm_head(hidden)[FIRST_CODE : FIRST_CODE + 16]
    return of_codes

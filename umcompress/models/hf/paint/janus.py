"""Janus: a vision tower reads; codes have embeddings and a head of their own, and a decoder."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from umcompress.models.hf.inputs import picture
from umcompress.models.hf.paint.picture_codes import Inputs, PictureCodes


class JanusPictureCodes(PictureCodes):
    """Without the prompt: the same length of padding, as in transformers."""

    guidance: ClassVar[float] = 5.0

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def grid(self) -> tuple[int, int]:
        side = int(self.model.config.vq_config.num_patches)
        return side, side

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.model.config.vq_config.channel_multiplier) - 1))

    def fixed_picture(self, fill: float | None = None) -> Inputs:
        found = picture(self.model, fill)
        assert found is not None
        return found

    def embeddings_of_picture(self, call: Inputs) -> Tensor:
        found: Tensor = self.model.model.get_image_features(**call).pooler_output
        return found

    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        made = self.processed(self.rendered(prompt, 0), generation_mode="image")
        ids = made["input_ids"][0].tolist()
        tokenizer = self.processor.tokenizer
        kept = {tokenizer.bos_token_id, self.id_of(self.processor.image_start_token)}
        pad = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
        return ids, [token if token in kept else pad for token in ids]

    def code_logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.model.model.generation_head(hidden)
        return found

    def embed_codes(self, codes: Tensor, ends_row: bool) -> Tensor:
        found: Tensor = self.model.prepare_embeddings_for_image_generation(codes[:, None])
        return found

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        found: Tensor = self.model.model.vqmodel.decode(codes)
        return found

    def encode(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model.model.vqmodel.encode(pixels).image_tokens
        return found.view(len(pixels), -1)

"""Chameleon: codes are words of the language model. The released weights cannot turn them into pixels."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from umcompress.models.hf.inputs import picture
from umcompress.models.hf.paint.picture_codes import Inputs, PictureCodes


class ChameleonPictureCodes(PictureCodes):
    """Codes are drawn from logits that the model's own forward would forbid. Without the prompt: nothing."""

    guidance: ClassVar[float] = 3.0
    no_decoder: ClassVar[str | None] = "Chameleon was released without the decoder of its image tokens"

    @property
    def language_model(self) -> Any:
        return self.model.model

    @property
    def grid(self) -> tuple[int, int]:
        side = int(self.model.config.vq_config.resolution) // self.factor
        return side, side

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.model.config.vq_config.channel_multiplier) - 1))

    def fixed_picture(self, fill: float | None = None) -> Inputs:
        found = picture(self.model, fill)
        assert found is not None
        return found

    def embeddings_of_picture(self, call: Inputs) -> Tensor:
        if self.device.type != "meta":
            found: Tensor = self.model.model.get_image_features(**call).pooler_output
            return found
        codes = self.model.model.vqmodel.encode(call["pixel_values"]).image_tokens
        shapes: Tensor = self.embed(codes.view(1, -1))
        return shapes

    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        begin = self.id_of(self.processor.image_start_token)
        made = [self.processed(text, return_for_text_completion=True) for text in (prompt, "")]
        asked, nothing = ([int(token) for token in one["input_ids"][0]] for one in made)
        return [*asked, begin], [*nothing, begin]

    @property
    def _token_of_code(self) -> Tensor:
        """Code -> token id."""
        found: Tensor = self.model.model.vocabulary_mapping.img2bpe_mapping_tensor
        return found.long().to(self.device)

    def code_logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.model.lm_head(hidden)[..., self._token_of_code]
        return found

    def embed_codes(self, codes: Tensor, ends_row: bool) -> Tensor:
        found: Tensor = self.embed(self._token_of_code[codes][:, None])
        return found

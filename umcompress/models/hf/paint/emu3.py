"""Emu3: codes are words of the language model; rows of a picture end with a word of their own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from umcompress.models.hf.inputs import ramp
from umcompress.models.hf.paint.picture_codes import Inputs, PictureCodes

# What the model's authors lead away from.
NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
# Pixels, as its processor has it.
SIDE = 720


class Emu3PictureCodes(PictureCodes):
    """`generation_kwargs` may give `height` and `width` in pixels and `negative_prompt`."""

    guidance: ClassVar[float] = 3.0
    top_k: ClassVar[int] = 2048
    row_end: ClassVar[int] = 1

    @property
    def language_model(self) -> Any:
        return self.model.model.text_model

    @property
    def factor(self) -> int:
        return int(self.model.model.vqmodel.vision_spatial_factor)

    @property
    def grid(self) -> tuple[int, int]:
        height, width = (int(self.generation_kwargs.get(side, SIDE)) // self.factor for side in ("height", "width"))
        return max(1, height), max(1, width)

    @property
    def small_grid(self) -> tuple[int, int]:
        return 4, 4

    def _open_processor(self) -> Any:
        found = super()._open_processor()
        found.downsample_ratio = self.factor
        return found

    def fixed_picture(self, fill: float | None = None) -> Inputs:
        side = 4 * self.factor
        return {"pixel_values": ramp((1, 3, side, side), fill), "image_sizes": torch.tensor([[side, side]])}

    def embeddings_of_picture(self, call: Inputs) -> Tensor:
        if self.device.type != "meta":
            found: tuple[Tensor, ...] = self.model.model.get_image_features(**call).pooler_output
            return found[0][None]
        height, width = call["pixel_values"].shape[-2:]
        (codes,) = self.model.model.vqmodel.encode(call["pixel_values"], [[height, width]]).image_tokens
        with_ends = torch.cat([codes, codes[:, :1]], dim=1)
        shapes: Tensor = self.embed(with_ends.view(1, -1))
        return shapes

    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        negative = self.generation_kwargs.get("negative_prompt", NEGATIVE)
        return self._prompt_ids(prompt), self._prompt_ids(negative)

    def _prompt_ids(self, prompt: str) -> list[int]:
        height, width = self.grid
        size = {"ratio": f"{width}:{height}", "image_area": height * width * self.factor**2}
        made = self.processed(prompt, return_for_image_generation=True, **size)
        found: list[int] = made["input_ids"][0].tolist()
        return found

    @property
    def _token_of_code(self) -> Tensor:
        """Code -> token id."""
        found: Tensor = self.model.vocabulary_mapping.img2bpe_mapping_tensor
        return found.long().to(self.device)

    def code_logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.model.lm_head(hidden)[..., self._token_of_code]
        return found

    def embed_codes(self, codes: Tensor, ends_row: bool) -> Tensor:
        ids = self._token_of_code[codes][:, None]
        if ends_row:
            end = torch.full_like(ids, self.model.vocabulary_mapping.eol_token_id)
            ids = torch.cat([ids, end], dim=1)
        found: Tensor = self.embed(ids)
        return found

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        found: Tensor = self.model.model.vqmodel.decode(codes.view(-1, *grid))
        return found

    def encode(self, pixels: Tensor) -> Tensor:
        sizes = [list(pixels.shape[-2:])] * len(pixels)
        found: list[Tensor] = self.model.model.vqmodel.encode(pixels, sizes).image_tokens
        return torch.stack(found).flatten(1)

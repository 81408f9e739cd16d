"""What an architecture has of its own about pictures: how they are read, how they are asked for, how they are painted.

B pictures, P rows of one picture in the language model, V codes, H hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from umcompress.errors import ModelError
from umcompress.models.hf.ask.processors import COPY
from umcompress.models.hf.ask.questions import QuestionPreparer
from umcompress.models.pictures import to_image

Inputs = dict[str, Tensor]


class PictureCodes(QuestionPreparer, ABC):
    """Of one model. Processor and tokenizer are opened when pictures or text first need them."""

    # Guidance when the folder says nothing.
    guidance: ClassVar[float]
    top_k: ClassVar[int] = 0
    # Tokens after each row of codes.
    row_end: ClassVar[int] = 0
    # Why its codes become no picture, where they do not.
    no_decoder: ClassVar[str | None] = None

    @property
    def device(self) -> torch.device:
        found: torch.device = self.embed.weight.device
        return found

    @property
    def embed(self) -> Any:
        """The language model's embedding."""
        return self.model.get_input_embeddings()

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """`generation_kwargs` of the folder's generation settings."""
        config = getattr(self.model, "generation_config", None)
        found: dict[str, Any] = getattr(config, "generation_kwargs", None) or {}
        return found

    def id_of(self, token: str) -> int:
        """Of a token that the tokenizer knows."""
        tokenizer = self.processor.tokenizer
        found = tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int) or found == tokenizer.unk_token_id:
            raise ModelError(f"the tokenizer of {self.folder}", f"no token {token!r}", COPY)
        return found

    # -- what differs ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The language model without its heads."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Height and width of a painted picture in codes."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """Pixels of a code, each way."""

    @property
    def small_grid(self) -> tuple[int, int]:
        """The smallest that can be decoded, for checks."""
        return self.grid

    @abstractmethod
    def fixed_picture(self, fill: float | None = None) -> Inputs:
        """A picture as the vision tower takes it: a ramp, or one value everywhere."""

    @abstractmethod
    def embeddings_of_picture(self, call: Inputs) -> Tensor:
        """What the language model reads of a picture, (1, P, H). Runs on shapes alone, too."""

    @abstractmethod
    def prompt_ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids that ask for a picture, and those that ask for any picture: guidance leads away from these."""

    @abstractmethod
    def code_logits(self, hidden: Tensor) -> Tensor:
        """(B, H) -> (B, V), of codes only."""

    @abstractmethod
    def embed_codes(self, codes: Tensor, ends_row: bool) -> Tensor:
        """(B,) codes as the language model reads them on, (B, k, H), with what is sure to follow."""

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h * w) -> (B, 3, height, width), about -1 to 1."""
        raise ModelError(
            f"decode pictures of {type(self.model).__name__}", str(self.no_decoder), "ask it questions about pictures"
        )

    def to_pixels(self, decoded: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(3, h, w) -> (h, w, 3), the image processor undone."""
        rule = self.processor.image_processor
        pixels = decoded.float().cpu().permute(1, 2, 0).numpy()
        if rule.do_normalize:
            pixels = pixels * np.asarray(rule.image_std, np.float32) + np.asarray(rule.image_mean, np.float32)
        found: np.ndarray[Any, np.dtype[np.uint8]] = (pixels / rule.rescale_factor).clip(0, 255).astype(np.uint8)
        return found

    # -- training --------------------------------------------------------------------------------------------

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, h * w) codes, the other way of `decode`."""
        raise ModelError(
            f"train {type(self.model).__name__} on pictures of prompts", str(self.no_decoder),
            "train it on questions about pictures",
        )  # fmt: skip

    @torch.no_grad()
    def codes_of(self, images: Sequence[Any]) -> Tensor:
        """(B, h * w): pictures as the model would have to paint them."""
        return self.encode(torch.stack([self.to_values(image) for image in images]).to(self.device, self.model.dtype))

    def to_values(self, image: Any) -> Tensor:
        """(3, h, w), the other way of `to_pixels`: scaled to the size that is painted, and cut where it is longer."""
        height, width = (side * self.factor for side in self.grid)
        rule = self.processor.image_processor
        fitted = ImageOps.fit(to_image(image), (width, height), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(fitted)).float() * rule.rescale_factor
        if rule.do_normalize:
            values = (values - torch.tensor(rule.image_mean)) / torch.tensor(rule.image_std)
        found: Tensor = values.permute(2, 0, 1)
        return found

"""Which trainer a model of transformers has; and pictures as tokens in training.

B pictures of h by w codes, P tokens of a prompt, T tokens in all, H hidden.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from umcompress.errors import ModelError
from umcompress.models.hf.anatomy.components import component_of
from umcompress.models.hf.ask.picture_runner import PictureQuestionRunner
from umcompress.models.hf.inputs import generates_text
from umcompress.models.hf.paint import unified_runner
from umcompress.models.hf.train.text_trainer import TextTrainer, VisionLanguageTrainer, batch_of, cross_entropy
from umcompress.models.items import ImageText, TrainingItem
from umcompress.models.trainer import TrainingBatch, TrainingForward

# Share of prompts that are left out, so that the unguided branch learns as well.
PROMPT_DROPOUT = 0.1
_PICTURE_TOKENIZER = re.compile(r"(^|\.)(vqmodel|vq_model)\.")


def trainer(model: nn.Module, folder: Path) -> TextTrainer:
    """ModelError for a model that does not continue text."""
    assert isinstance(model, PreTrainedModel)
    runner = unified_runner.runner(model, folder)
    if not generates_text(runner.model) or runner.model.config.is_encoder_decoder:
        raise ModelError(
            f"train {type(model).__name__}", "it does not continue text", "training needs a causal language model"
        )
    if isinstance(runner, unified_runner.UnifiedRunner):
        return UnifiedTrainer(runner)
    return VisionLanguageTrainer(runner) if isinstance(runner, PictureQuestionRunner) else TextTrainer(runner)


@dataclass(frozen=True)
class PictureBatch:
    """Pictures after their prompts.  codes: (B, h * w), row by row.  mask: (B, T), padded on the right."""

    prompts: list[list[int]]
    codes: Tensor
    mask: Tensor


class UnifiedTrainer(VisionLanguageTrainer):
    """Answers about pictures; and pictures of prompts, each code from those before it, as they are painted."""

    def __init__(self, runner: unified_runner.UnifiedRunner) -> None:
        super().__init__(runner)
        self.pictures, self.tasks = runner.pictures, runner.tasks
        height, width = self.pictures.grid
        # Tokens of a row of codes; of a picture those that another code follows.
        self.row = width + self.pictures.row_end
        self.length = (height - 1) * self.row + width - 1

    def check(self, items: Sequence[TrainingItem]) -> None:
        for item in items:
            if isinstance(item, ImageText):
                self.pictures.to_values(item.image)
                self.pictures.prompt_ids(item.prompt)
        super().check([item for item in items if not isinstance(item, ImageText)])

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        if _PICTURE_TOKENIZER.search(name):
            return "pictures become tokens by a choice, through which nothing flows back"
        if component_of(name) == "generation" and not any(isinstance(item, ImageText) for item in items):
            return "no pictures with prompts are trained on"
        return super().blocked(name, items)

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """Of each prompt is drawn whether it is left out."""
        painted = [(item, draw) for item, draw in zip(items, draws, strict=True) if isinstance(item, ImageText)]
        portions = self._portions([item for item in items if not isinstance(item, ImageText)])
        counted = sum(int(portion.wanted.sum()) for portion in portions)
        rows = {"cross_entropy": counted, "logits": counted} if portions else {}
        if not painted:
            return batch_of((portions, None), rows, portions)
        prompts = [self.pictures.prompt_ids(item.prompt)[int(draw.random() < PROMPT_DROPOUT)] for item, draw in painted]
        codes = self.pictures.codes_of([item.image for item, _ in painted])
        mask = pad_sequence([torch.ones(len(ids) + self.length) for ids in prompts], batch_first=True)
        rows |= {"codes": codes.numel(), "code_logits": codes.numel()}
        return batch_of((portions, PictureBatch(prompts, codes, mask)), rows, portions, mask)

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        portions, canvas = batch.data
        losses, outputs = {}, {}
        if portions:
            losses["cross_entropy"], outputs["logits"] = self._losses_and_logits(portions)
        if canvas is not None:
            outputs["code_logits"] = self._code_logits(canvas)
            losses["codes"] = cross_entropy(outputs["code_logits"], canvas.codes.flatten().to(self.runner.device))
        return TrainingForward(losses, outputs)

    @torch.no_grad()
    def losses(
        self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator], times: Sequence[float]
    ) -> Tensor:
        """Cross-entropy of the codes of pictures after their prompts; of answers as of any text."""
        painted = [item for item in items if isinstance(item, ImageText)]
        if not painted:
            return super().losses(items, draws, times)
        prompts = [self.pictures.prompt_ids(item.prompt)[0] for item in painted]
        codes = self.pictures.codes_of([item.image for item in painted])
        mask = pad_sequence([torch.ones(len(ids) + self.length) for ids in prompts], batch_first=True)
        logits = self._code_logits(PictureBatch(prompts, codes, mask))
        losses = cross_entropy(logits, codes.flatten().to(logits.device))
        return losses.view(len(painted), -1).double().mean(1, keepdim=True).cpu()

    def _code_logits(self, canvas: PictureBatch) -> Tensor:
        """(B * h * w, codes) logits: of each code from its prompt and the codes before."""
        pictures, device = self.pictures, self.runner.device
        height, width = pictures.grid
        codes = self._embedded(canvas.codes.to(device).view(-1, height, width))[:, : self.length]
        words = [pictures.embed(torch.tensor(ids, device=device)) for ids in canvas.prompts]
        read = pad_sequence([torch.cat(both) for both in zip(words, codes, strict=True)], batch_first=True)
        mask = canvas.mask.to(device).long()
        hidden = pictures.language_model(inputs_embeds=read, attention_mask=mask, use_cache=False).last_hidden_state
        place = torch.arange(height)[:, None] * self.row + torch.arange(width)
        found = [rows[len(ids) - 1 :][place.flatten()] for rows, ids in zip(hidden, canvas.prompts, strict=True)]
        return pictures.code_logits(torch.cat(found))

    def _embedded(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B, h * tokens of a row, H), with what ends each row."""
        count, height, width = codes.shape
        inner = self.pictures.embed_codes(codes[:, :, :-1].flatten(), ends_row=False)
        last = self.pictures.embed_codes(codes[:, :, -1].flatten(), ends_row=True)
        rows = [inner.view(count, height, width - 1, -1), last.view(count, height, 1 + self.pictures.row_end, -1)]
        return torch.cat(rows, dim=2).flatten(1, 2)

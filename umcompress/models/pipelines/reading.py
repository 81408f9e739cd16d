"""A text encoder that is a whole language model answers questions: about pictures too, where it sees."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from umcompress.errors import ModelError
from umcompress.models.hf.ask.processors import has_processor, open_processor, without_videos
from umcompress.models.hf.ask.questions import QuestionPreparer
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.hf.ask.tokenizer import FolderTokenizer, embeddings
from umcompress.models.hf.ask.vision_runner import VisionLanguageRunner, takes_pictures_and_text
from umcompress.models.hf.inputs import generates_text

TOKENIZER, PROCESSOR = "tokenizer", "processor"
# Where a pipeline brings no processor: how Qwen2.5-VL is asked, in its own marks.
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SEEING = "Qwen2_5_VLForConditionalGeneration"


def reader(model: Any, folder: Path) -> TransformersRunner | None:
    """The runner of a text encoder; None for one that continues no text. folder: the pipeline's."""
    if not isinstance(model, PreTrainedModel) or not generates_text(model):
        return None
    if takes_pictures_and_text(model) and (_SEEING in [c.__name__ for c in type(model).__mro__] or _brought(folder)):
        return SeeingReader(model, folder)
    return Reader(model, folder)


def _brought(folder: Path) -> bool:
    return has_processor(folder / PROCESSOR)


class Reader(TransformersRunner):
    """Text in, text out; the tokenizer lies beside the model."""

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        return FolderTokenizer(self.folder / TOKENIZER, rows=embeddings(self.model))


class SeeingReader(VisionLanguageRunner):
    """Pictures and text in, text out; tokenizer and processor lie beside the model."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        super().__init__(model, folder)
        self.preparer = _Preparer(model, folder)

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        return FolderTokenizer(self.folder / TOKENIZER, rows=embeddings(self.model))


class _Preparer(QuestionPreparer):
    """Opens the processor that a pipeline brings, or puts one together from its tokenizer."""

    def _open_processor(self) -> Any:
        if _brought(self.folder):
            return open_processor(self.folder / PROCESSOR)
        from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor

        vision = self.model.config.vision_config
        pictures: Any = Qwen2VLImageProcessor(
            patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder / TOKENIZER)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the tokenizer of {self.folder}", str(error).splitlines()[0][:200], "copy it from the pipeline"
            ) from error
        return without_videos(Qwen2_5_VLProcessor)(pictures, tokenizer, None, chat_template=_CHAT)

    @cached_property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

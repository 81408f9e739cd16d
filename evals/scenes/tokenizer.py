"""A word-level tokenizer for the scenes world, in Hugging Face format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from umcompress.evals.scenes import prompts, questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN = "<unk>"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")


def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark of the world, sorted."""
    phrases = [*prompts.all_texts(), *questions.all_texts()]
    return tuple(sorted({word for phrase in phrases for word in re.findall(r"\w+|[^\w\s]", phrase)}))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Ids: `<unk>`, the sorted words, then the special tokens. Nothing is added to a text by itself.

    Decoding joins words by spaces and closes up punctuation, so that every string of the world comes back.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate((UNKNOWN, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|vision_start|>", "<|vision_end|>"],
        clean_up_tokenization_spaces=False,
    )

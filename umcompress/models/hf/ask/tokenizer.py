"""The tokenizer of a folder, opened when text is first needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn, tensor
from transformers import AutoTokenizer

from umcompress.errors import ModelError
from umcompress.models.bare_errors import bare_as_value_error
from umcompress.models.hf.load import own_code
from umcompress.models.parts_of_folder import beside, tokenizer_files
from umcompress.models.remote_code import references, require_local_code, untrusted_code

_COPY = "copy the tokenizer files of the model into its folder"


class FolderTokenizer:
    """Text to ids and back."""

    def __init__(self, folder: Path, trust: bool = False, rows: int | None = None) -> None:
        """trust: consent to run Python code that comes with the folder. rows: of the model's embedding, if known."""
        if not tokenizer_files(folder):
            folder = beside(folder.resolve()) or folder
        self.folder, self.rows = folder, rows
        if not tokenizer_files(folder):
            raise ModelError(f"the tokenizer of {folder}", "no tokenizer files", _COPY)
        if trust:
            require_local_code(folder)
        try:
            with own_code.errors_of(folder, only_inside=True), bare_as_value_error():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
            if not trust and any("okeniz" in name for name in references(folder)):
                raise untrusted_code(folder, "the tokenizer") from error
            lines = str(error).splitlines() or [type(error).__name__]
            raise ModelError(
                f"the tokenizer of {folder}", lines[0][:200], _COPY
            ) from error

    def ids(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around any text."""
        return self.checked_ids([int(token) for token in self.tokenizer(text)["input_ids"]])

    def continuation_ids(self, text: str) -> list[int]:
        """Text that goes on after other text."""
        return self.checked_ids([int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]])

    def checked_ids(self, ids: list[int]) -> list[int]:
        """The ids; ModelError where the model has no embedding for one."""
        if self.rows is None or not ids or max(ids) < self.rows:
            return ids
        raise ModelError(
            f"read text with the tokenizer of {self.folder}",
            f"it makes token {max(ids)}, and the model has {self.rows} embeddings",
            "the tokenizer is another model's: copy the tokenizer files of this model into its folder",
        )

    def prompt_and_continuation(self, before: str, after: str) -> tuple[list[int], list[int]]:
        """A text and what follows it, cut into tokens as one text; before nothing stands the token that begins texts.

        Space at the end of the first belongs to the second, as in lm-eval: that is how words are cut.
        """
        kept = before.rstrip()
        if not before:
            first = next(
                (token for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if token is not None), 0
            )
            rest = self.continuation_ids(after)
            return ([first], rest) if rest[:1] != [first] else (rest[:1], rest[1:])
        ids = self.ids(kept)
        return ids, self.ids(before + after)[len(ids) :]

    def question_ids(self, text: str) -> list[int]:
        """A question as the model was taught to be asked, by the tokenizer's chat template where there is one."""
        return self.continuation_ids(self._rendered(text)) if self._has_chat_template else self.ids(text)

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """Token ids of the answer to a question in training, to the end of its turn in the chat."""
        if not self._has_chat_template:
            return ids_after_question(self.tokenizer, answer)
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = self.tokenizer.apply_chat_template(chat, tokenize=False)
        return ids_after_question(self.tokenizer, answer, str(whole), self._rendered(question))

    @property
    def _has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _rendered(self, question: str) -> str:
        chat = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def text(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def beginning(self, text: str, tokens: int) -> str:
        """What of a text its first tokens were made of, as it was before the tokenizer changed anything."""
        if len(self.continuation_ids(text)) <= tokens:
            return text
        if getattr(self.tokenizer, "is_fast", False):
            made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return text[: max(end for _, end in made["offset_mapping"][:tokens])]
        short, long = 0, len(text)
        while short < long:
            middle = (short + long + 1) // 2
            short, long = (middle, long) if len(self.continuation_ids(text[:middle])) <= tokens else (short, middle - 1)
        return text[:short]

    def left_padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, T) ids and mask."""
        pad = self.tokenizer.pad_token_id
        pad = next(token for token in (pad, self.tokenizer.eos_token_id, 0) if token is not None)
        longest = max(map(len, rows))
        ids = [[pad] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return tensor(ids), tensor(mask)


def embeddings(model: Any) -> int | None:
    """How many tokens a model of transformers has an embedding for; None where it does not tell."""
    try:
        embedding = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def ids_after_question(tokenizer: Any, answer: str, whole: str = "", asked: str = "") -> list[int]:
    """Ids of what is said after a question: as the chat template has it, else the answer and the end of texts.

    whole, asked: the chat with the answer, and what the answer is asked with; "": no template.
    """
    rest = whole[len(asked) :].rstrip() if whole.startswith(asked) else ""
    if not rest.strip().startswith(answer.strip()):
        rest = answer
    ids = [int(token) for token in tokenizer(rest, add_special_tokens=False)["input_ids"]]
    if rest.strip() == answer.strip() and tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
    return ids

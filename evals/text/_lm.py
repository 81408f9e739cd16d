"""Language models as lm-eval knows them, over the runners of umcompress.  Importing this loads lm-eval.

Requests are lm-eval's: their arguments are (context, continuation or settings), and pictures where a task has any.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from umcompress.evals._benchmark import digest
from umcompress.evals.answers._questions import Decoder, StoredPicture
from umcompress.extend import UsageError, open_picture

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.extend import Runner

KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
DEFAULT_TOKENS = 256  # of an answer, where the task says nothing: lm-eval's own number
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_ONLY_SAMPLING = ("top_p", "top_k", "min_p")


class RunnerLM(LM):  # type: ignore[misc]
    """Any model with a runner, pictures included.  A context is asked as a question, in the model's own form."""

    MULTIMODAL = True

    def __init__(self, runner: Runner, batch: int | None = None) -> None:
        super().__init__()
        self.runner = runner
        self.batch = batch or runner.batch_size or 8
        self.pictures = Decoder()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Continuations of one context are scored together: what comes before is read once."""
        found: list[tuple[float, bool]] = []
        asked = [list(same) for _, same in groupby(requests, _asked)]
        for start in range(0, len(asked), self.batch):
            some = asked[start : start + self.batch]
            images = [self._images(same[0]) for same in some]
            # Before a text that stands alone there is nothing, not an empty question.
            alone = [image is None and not same[0].args[0] for same, image in zip(some, images, strict=True)]
            prompts = [None if bare else same[0].args[0] for same, bare in zip(some, alone, strict=True)]
            texts = [[request.args[1] for request in same] for same in some]
            for likely in self.runner.score(images, prompts, texts):
                found += [(one.nats, one.greedy) for one in likely]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Whole texts, nothing before them."""
        return [self.runner.score([None], [None], [[request.args[0]]])[0][0].nats for request in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, cut before the first of the texts that end them."""
        found = []
        for start in range(0, len(requests), self.batch):
            some = requests[start : start + self.batch]
            settings = [greedy_settings(request.args[1]) for request in some]
            longest = max(tokens for tokens, _ in settings)
            images, prompts = [self._images(request) for request in some], [request.args[0] for request in some]
            if any(tokens != longest for tokens, _ in settings):
                answers = [
                    self.runner.answer([image], [prompt], tokens)[0]
                    for image, prompt, (tokens, _) in zip(images, prompts, settings, strict=True)
                ]
            else:
                answers = self.runner.answer(images, prompts, longest)
            found += [cut(answer, until) for answer, (_, until) in zip(answers, settings, strict=True)]
        return found

    def _images(self, request: Any) -> Any:
        """None, a picture or a list of them."""
        more = request.args[2] if len(request.args) > 2 else {}
        if other := sorted(set(more) - {"visual"}):
            raise UsageError(f"the task {request.task_name}", f"it has {', '.join(other)}", "leave the task out")
        shown = [self._picture(visual) for visual in visuals(request)]
        return None if not shown else shown[0] if len(shown) == 1 else shown

    def _picture(self, visual: Any) -> Any:
        if isinstance(visual, str | Path):
            return self.pictures(StoredPicture(str(visual), Path(visual)))
        if isinstance(visual, bytes):
            return StoredPicture("of a task", lambda: visual).open()
        return open_picture(visual, "a picture of a task") if hasattr(visual, "convert") else visual

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns one after another: the runner puts its own form around a question."""
        return "\n\n".join(str(turn["content"]) for turn in chat_history)

    @property
    def tokenizer_name(self) -> str:
        return type(self.runner).__name__


def visuals(request: Any) -> list[Any]:
    """The pictures of a request as the task gives them: files, bytes, decoded ones."""
    more = request.args[2] if len(request.args) > 2 else {}
    found = more.get("visual")
    several = found if isinstance(found, list | tuple) else [] if found is None else [found]
    return [_stored(visual) for visual in several]


def _stored(visual: Any) -> Any:
    """What datasets keeps undecoded is a dict of bytes and a path."""
    if isinstance(visual, dict) and {"bytes", "path"} & set(visual):
        return visual.get("bytes") or visual["path"]
    return visual


def _asked(request: Any) -> tuple[Any, ...]:
    """What requests have in common that differ in their continuation only."""
    return (request.args[0], *(id(v) if not isinstance(v, str | bytes | Path) else v for v in visuals(request)))


def greedy_settings(settings: Mapping[str, Any]) -> tuple[int, list[str]]:
    """(longest answer in tokens, texts that end it) of lm-eval's `generation_kwargs`; UsageError for sampling."""
    left = dict(settings)
    until = left.pop("until", None) or []
    lengths = [left.pop(name, None) for name in _LENGTHS]
    sampled = left.pop("do_sample", None)
    temperature = left.pop("temperature", None) or 0.0
    if sampled or (sampled is None and float(temperature) > 0):
        raise UsageError("generation_kwargs of a task", "it samples its answers", "set do_sample: false in the task")
    for name in _ONLY_SAMPLING:
        left.pop(name, None)
    if left.pop("num_beams", 1) != 1 or left:
        names = ", ".join(left) or "num_beams"
        raise UsageError(
            "generation_kwargs of a task", f"{names}; answers are greedy here", "keep until, max_gen_toks and do_sample"
        )
    longest = next((int(length) for length in lengths if length is not None), DEFAULT_TOKENS)
    return longest, [until] if isinstance(until, str) else [str(text) for text in until]


def cut(answer: str, until: Sequence[str]) -> str:
    """The answer before the first of the texts that end it."""
    for text in until:
        if text:
            answer = answer.split(text)[0]
    return answer


class ForwardingLM(LM):  # type: ignore[misc]
    """A language model that forwards requests to another one; all requests of a kind go through `_do`."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.MULTIMODAL = bool(getattr(inner, "MULTIMODAL", False))

    def _do(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        found: list[Any] = getattr(self.inner, kind)(requests, disable_tqdm=True)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [(float(nats), bool(greedy)) for nats, greedy in self._do("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return [float(nats) for nats in self._do("loglikelihood_rolling", requests)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [str(text) for text in self._do("generate_until", requests)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self.inner.apply_chat_template(chat_history, add_generation_prompt))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        found: str | None = self.inner.chat_template(chat_template)
        return found

    @property
    def tokenizer_name(self) -> str:
        return str(self.inner.tokenizer_name)


class RecordedLM(ForwardingLM):
    """A language model whose answers are kept on disk: `collect(kind, requests, work)` reads or computes them."""

    def __init__(
        self, inner: Any, collect: Callable[[str, Sequence[Any], Callable[[Sequence[Any]], list[Any]]], list[Any]]
    ) -> None:
        super().__init__(inner)
        self.collect = collect

    def _do(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        def work(some: Sequence[Any]) -> list[Any]:
            return super(RecordedLM, self)._do(kind, some)

        return self.collect(kind, requests, work)


def language_model(runner: Runner, batch: int | None = None, pictures: bool = False) -> LM:
    """lm-eval's own `hf` over a causal language model of transformers, ours over everything else and for `pictures`.

    So what is measured in memory is what `lm_eval --model hf` measures on the saved folder, if that has no settings for
    generation of its own: those would decide along with the weights.
    """
    if not runner.reads_texts or (pictures and runner.reads_pictures):
        return RunnerLM(runner, batch)
    from lm_eval.models.huggingface import HFLM

    words, at_rest = runner.tokenizer, runner.at_rest
    known = words.checked_ids

    class Known(HFLM):  # type: ignore[misc]
        """Refuses tokens that the model has no embedding for, before torch fails on them; reads each text at rest."""

        def _model_call(self, inps: Tensor, *more: Any, **settings: Any) -> Any:
            known([int(inps.max())])
            with at_rest():
                return super()._model_call(inps, *more, **settings)

        def _model_generate(self, context: Tensor, *more: Any, **settings: Any) -> Any:
            known([int(context.max())])
            with at_rest(), _folders_settings_aside(self.model):
                return super()._model_generate(context, *more, **settings)

    # The peer adds a padding token where there is none, and ties weights, of a model that is not its own.
    with _never_tied(runner.model):
        return Known(pretrained=runner.model, tokenizer=copy.deepcopy(words.tokenizer), batch_size=batch or 8)


@contextmanager
def _folders_settings_aside(model: Any) -> Iterator[None]:
    """What a task says of generation holds, not what a folder says: penalties, beams, tokens that are never said."""
    from transformers import GenerationConfig

    before = model.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    tokens = {name: getattr(before, name, None) for name in names}
    model.generation_config = GenerationConfig(**tokens)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _never_tied(model: Any) -> Iterator[None]:
    """Calling `tie_weights` does nothing: an output layer that a pass has changed stays as it is."""
    model.tie_weights = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del model.tie_weights


def identity(requests: Sequence[Any]) -> str:
    """Identifies requests: texts, settings and pictures."""

    def parts() -> Iterator[str]:
        for request in requests:
            texts = [json.dumps(part, sort_keys=True, default=str) for part in request.args[:2]]
            yield "\0".join([*texts, *(_picture_identity(visual) for visual in visuals(request))])

    return digest(parts())


def _picture_identity(visual: Any) -> str:
    """A file by its name, a picture by its pixels."""
    if isinstance(visual, str | Path):
        return str(visual)
    import numpy as np

    content = visual if isinstance(visual, bytes) else np.asarray(visual).tobytes()
    return digest([content.hex()])

"""Tasks of lm-eval on the model in memory: its own, those in a folder, those that umcompress ships."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, field_validator

from umcompress.evals._benchmark import ResumableLines, digest, earlier_seconds, model_digest
from umcompress.evals.text._lm_scores import scored
from umcompress.extend import Evaluation, Progress, Score, ScoredItem, Task, UsageError, processes

if TYPE_CHECKING:
    from umcompress.extend import Runner

CHUNK = 64
KEPT = ("results", "groups", "versions", "n-shot", "n-samples")
SHIPPED = Path(str(resources.files("umcompress"))) / "lm_eval" / "packaged"


def _split(value: Any) -> Any:
    """`tasks: a, b` as on a command line; a list as recipes have them."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, list) else value


class LmEval(Evaluation):
    """Scores of lm-eval's tasks, as `lm_eval --model hf` finds them on the saved model.

    The score is the plain mean over the tasks, of the first metric of each; `numbers` has every metric under its
    own name.  Where less is better, a perplexity counts as its inverse and any other metric with a minus.
    """

    name: ClassVar[str] = "lm_eval"
    names: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        alias="tasks", min_length=1,
        description="tasks, groups and tags: lm-eval's own (their data must be on disk or within reach), those of "
        "include_path, and scenes_choice and scenes_answer, which are shipped",
    )
    include_path: Path | None = Field(
        default=None, description="a folder of task files (.yaml) of your own"
    )
    limit: PositiveInt | None = Field(default=None, description="at most so many documents of each task, the first")
    num_fewshot: NonNegativeInt | None = Field(
        default=None, description="solved examples before each question; default: what the task says, else none"
    )
    apply_chat_template: bool = Field(default=False, description="put the tokenizer's chat template around prompts")
    batch: PositiveInt | None = Field(default=None, description="sequences in one forward; default: the model's own")

    @field_validator("names")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a task is named twice")
        return names

    def check(self) -> None:
        require(self.name)
        self._loaded()

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """A line a request in `out`, by kind of request; results.json as lm-eval gives it."""
        require(self.name)
        if "understanding" not in runner.tasks:
            raise UsageError(f"the evaluation {self.name}", "this model answers no questions", "leave it out")
        from umcompress.evals.text._lm import RecordedLM, identity, language_model
        from umcompress.evals.text._lm_tasks import chances, measured

        started, loaded, asked = time.monotonic(), self._loaded(), list[str]()

        def collect(kind: str, requests: Sequence[Any], work: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
            asked.append(identity(requests))
            return self._collect(runner, out, progress, kind, requests, work)

        shown = any(getattr(task, "MULTIMODAL", False) for task in loaded["tasks"].values())
        results, values = measured(
            RecordedLM(language_model(runner, self.batch, shown), collect), loaded, self.limit, self.apply_chat_template
        )
        if processes.rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            kept = {key: results[key] for key in KEPT if key in results}
            (out / "results.json").write_text(json.dumps(kept, indent=1, default=float) + "\n", encoding="utf-8")
        tasks = loaded["tasks"]
        score = scored(results, values, {name: one.aggregation() for name, one in tasks.items()}, chances(tasks))
        seconds = time.monotonic() - started
        seconds += earlier_seconds(out, time.time() - seconds)
        score = score.model_copy(update={
            "partial": _partial(results["n-samples"]), "seconds": seconds, "items_of": digest(sorted(asked)),
        })  # fmt: skip
        return {"understanding": score}

    def _collect(
        self, runner: Runner, out: Path, progress: Callable[[str], None], kind: str, requests: Sequence[Any],
        work: Callable[[Sequence[Any]], list[Any]],
    ) -> list[Any]:  # fmt: skip
        """What `work` says to each request, from the file where it is there; processes share the chunks."""
        from umcompress.evals.text._lm import identity

        known = {"evaluation": self.name, "model": model_digest(runner), "requests": identity(requests)}
        lines = ResumableLines(out / f"{kind}.jsonl", known)
        if lines.set_aside:
            progress(f"{self.name}: {out / kind}.jsonl was of another model or other tasks; kept as {kind}.jsonl.old")
        chunks = processes.share(list(_chunks(requests)))
        mine = [[index for index in chunk if str(index) not in lines] for chunk in chunks]
        total, open_ = sum(map(len, chunks)), sum(map(len, mine))
        with Progress(f"{self.name} ({kind})", "requests", total, total - open_, progress) as shown:
            for part in mine:
                if part:
                    said = work([requests[index] for index in part])
                    lines.append(*(
                        {"id": str(index), "task": requests[index].task_name, "document": requests[index].doc_id,
                         "request": requests[index].idx, "said": one}
                        for index, one in zip(part, said, strict=True)
                    ))  # fmt: skip
                    shown.advance(len(part))
        return [row["said"] for row in lines.finish([str(index) for index in range(len(requests))])]

    def _loaded(self) -> Any:
        """lm-eval's task objects, new ones each time: they remember what they were told."""
        from umcompress.evals.text._lm_tasks import loaded

        return loaded(self.names, self.include_path, SHIPPED, self.num_fewshot)

    def scored_items(self, task: Task) -> Iterator[ScoredItem]:
        """The documents' bare texts."""
        if task == "understanding":
            require(self.name)
            for one in self._loaded()["tasks"].values():
                for _, document in one.doc_iterator(limit=self.limit):
                    text = one.doc_to_text(document)
                    yield ScoredItem(text if isinstance(text, str) else str(document))


def _chunks(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Places of requests: whole documents together, about CHUNK in each."""
    chunk: list[int] = []
    for index, request in enumerate(requests):
        before = requests[index - 1]
        if len(chunk) >= CHUNK and (before.task_name, before.doc_id) != (request.task_name, request.doc_id):
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def _partial(counts: Mapping[str, Mapping[str, int]]) -> str | None:
    done, whole = (sum(count[key] for count in counts.values()) for key in ("effective", "original"))
    return None if done >= whole else f"{done} of {whole}"


def require(what: str) -> None:
    """UsageError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError(what, "lm-eval is not installed", 'pip install "umcompress[lm-eval]"')

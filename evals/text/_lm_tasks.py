"""Loading lm-eval's tasks and running them, by its own functions.  Importing this loads lm-eval."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from umcompress.extend import UmcompressError, UsageError, did_you_mean

FEWSHOT_SEED = 1234  # lm-eval's own: its command line draws the same examples
Values = dict[str, dict[tuple[str, str], list[Any]]]


@cache
def _manager(folders: tuple[str, ...], built_in: bool) -> Any:
    """Looking through lm-eval's own tasks takes some ten seconds, so it is done only when one is named."""
    return TaskManager(include_path=list(folders), include_defaults=built_in)


def loaded(names: Sequence[str], include: Path | None, shipped: Path, num_fewshot: int | None) -> Any:
    """{"tasks": name -> task, "groups": ...}, each task tried on its first document.  UsageError."""
    if include is not None and not include.is_dir():
        raise UsageError(f"lm_eval: include_path {include}", "no such folder", "name a folder of task files (.yaml)")
    folders = (str(shipped), *([str(include)] if include else []))
    # Its bars, a line for each task, go nowhere.
    with quiet_lm_eval(), redirect_stderr(io.StringIO()):
        manager = _manager(folders, False)
        if not set(names) <= set(manager.all_tasks):
            manager = _manager(folders, True)
        for name in names:
            if name not in manager.all_tasks:
                raise _unknown(name, manager.all_tasks, include)
        found = _by_their_code(f"lm_eval: the tasks {', '.join(names)}", lambda: manager.load(list(names)))
        for name, task in found["tasks"].items():
            _set_up(name, task, num_fewshot)
    return found


def _unknown(name: str, known: Sequence[str], include: Path | None) -> UsageError:
    """The error for unknown tasks; lm-eval skips task files that it cannot read, so these are named."""
    for path in sorted(include.glob("**/*.yaml")) if include else ():
        if name not in path.read_text(encoding="utf-8", errors="replace"):
            continue
        try:
            load_yaml(path, resolve_func=False)
        except (yaml.YAMLError, OSError, ValueError, TypeError) as error:
            line = " ".join(str(error).split())[:200]
            return UsageError(f"lm_eval: no task {name}", f"{path} is not readable: {line}", "mend the file")
    found = "it is neither lm-eval's own nor in include_path"
    return UsageError(f"lm_eval: no task {name}", found, did_you_mean(name, known))


def _by_their_code(asked: str, work: Callable[[], Any]) -> Any:
    """Task files hold anybody's code, and data that may be out of reach: whatever it raises is reported."""
    try:
        return work()
    except UmcompressError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        do = "mend the task file; data that is not on disk must be within reach (HF_HUB_OFFLINE=0)"
        raise UsageError(asked, f"{type(error).__name__}: {line}", do) from error


def _set_up(name: str, task: Any, num_fewshot: int | None) -> None:
    """Set the task up as lm-eval's command line does; fail now rather than after hours."""
    asked = f"lm_eval: the task {name}"
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(asked, "it runs code that the model writes", "leave it out, or use lm-eval itself")
    if unknown := [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]:
        raise UsageError(asked, f"unknown metric {', '.join(unknown)}", "name one of lm-eval's, or give a !function")
    said = task.get_config("num_fewshot")
    # A task that says 0 means it: lm-eval does not override that either.
    if said is None or (num_fewshot is not None and said != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)

    def first() -> None:
        task.build_all_requests(limit=1, rank=0, world_size=1)
        if not task.instances:
            raise ValueError("it has no documents")

    _by_their_code(asked, first)


def measured(lm: Any, found: Any, limit: int | None, chat: bool) -> tuple[dict[str, Any], Values]:
    """lm-eval's results, and of each task the values that each (metric, filter) was aggregated from."""
    for name, task in found["tasks"].items():
        if getattr(task, "MULTIMODAL", False) and not lm.MULTIMODAL:
            raise UsageError(f"lm_eval: the task {name}", "it shows pictures; this model is run on text here",
                             "leave it out")
    said: dict[str, list[dict[str, Any]]] = {name: [] for name in found["tasks"]}
    for name, task in found["tasks"].items():
        _listen(task, name, said[name])
    with quiet_lm_eval(), _seeded():
        # No bootstrap: the intervals are ours.  No log of samples: it would encode every picture again.
        results = evaluate(
            lm, found, limit=limit, bootstrap_iters=0, log_samples=False, apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    return results, {name: _values(task, said[name]) for name, task in found["tasks"].items()}


def chances(tasks: Mapping[str, Any]) -> dict[str, float]:
    """What guessing gets in each multiple-choice task, over the documents that were asked."""
    found = {}
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "multiple_choice":
            documents = {request.doc_id: request.doc for request in task.instances}
            found[name] = sum(1 / len(task.doc_to_choice(one)) for one in documents.values()) / len(documents)
    return found


def _listen(task: Any, name: str, said: list[dict[str, Any]]) -> None:
    """Note what `process_results` gives, document after document, filter after filter."""
    judge = task.process_results

    def heard(document: Any, answers: Any) -> Any:
        found = _by_their_code(f"lm_eval: the task {name}", lambda: judge(document, answers))
        said.append(found)
        return found

    task.process_results = heard


def _values(task: Any, said: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[Any]]:
    filters = list(task.instances[0].filtered_resps)
    each = len(said) // len(filters)
    found: dict[tuple[str, str], list[Any]] = {}
    for index, row in enumerate(said):
        for metric, value in row.items():
            found.setdefault((metric, filters[index // each]), []).append(value)
    return found


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval's log messages and progress bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _seeded() -> Iterator[None]:
    """The seeds of lm-eval's command line, for tasks that draw; afterwards all is as it was."""
    import numpy as np

    state, numbers = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)

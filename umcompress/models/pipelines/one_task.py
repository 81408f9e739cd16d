"""What painting a prompt reads of a pipeline, and what is left of a text encoder that does nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from umcompress.documents.base import Task
from umcompress.errors import ModelError, UsageError
from umcompress.graph.lower import original_class
from umcompress.graph.model_graph import TaskReads
from umcompress.models.hf.load.run_on_shapes import OnShapes
from umcompress.models.hf.load.skeleton import is_shapes_only
from umcompress.models.hf.paint.sampling import generator_of
from umcompress.models.pipelines.painting import Painter, PaintingSettings, small
from umcompress.models.pipelines.parts import PipelineModel
from umcompress.models.pipelines.stacks import READS
from umcompress.models.reached import read_in_run
from umcompress.rewrite.nn.absent import Absent, require_task

PROMPT = "a picture"
# Classes, beside causal language models, whose inner model alone gives the same states, and where it lies in them.
_LANGUAGE_MODELS = {"Qwen2_5_VLForConditionalGeneration": "model.language_model"}


def read_in(model: PipelineModel, task: Task) -> TaskReads:
    """All of what denoises and decodes; of encoders that are models of transformers, what a painted prompt reads."""
    require_task(model, task)
    asked = f"specialize {model.index.kind} for {task}"
    if task == "understanding":
        raise ModelError(
            asked, f"of a pipeline that is its {READS}/ alone, which is a model by itself already",
            f"name {model.folder / READS} as the model, or leave the step out",
        )
    reached, called = _read(model, asked)
    heads = dict(_heads(model))
    in_vain = frozenset(path for path, names in heads.items() if not names & reached)
    idle = frozenset[str]().union(*(heads[path] for path in in_vain))
    whole = (part for part in model.index.parts if part.library != "transformers")
    theirs = {f"{part.name}.{name}" for part in whole for name, _ in model.of(part).named_parameters()}
    return TaskReads((reached | called | theirs) - idle, in_vain)


def _read(model: PipelineModel, asked: str) -> tuple[frozenset[str], frozenset[str]]:
    """On shapes; of a pipeline that looks at values on its way (Z-Image), with those of the model if it has them."""
    try:
        return read_in_run(model, _paint, around=OnShapes())
    except (NotImplementedError, RuntimeError, UsageError) as error:
        if not is_shapes_only(model):
            return read_in_run(model, _paint, on_shapes=False)
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            asked, f"it does not run without values: {found}", "apply it in memory, without --out-of-core"
        ) from error


def _paint(model: nn.Module) -> Iterable[Tensor]:
    """A small picture of a prompt in one step, decoded."""
    assert isinstance(model, PipelineModel)
    painter = Painter(model, model.folder)
    settings = small(PaintingSettings(), painter.smallest, 1)
    picture: Tensor = painter.call(PROMPT, generator_of(0, 0), settings, output="pt")
    return [picture]


def _heads(model: PipelineModel) -> Iterator[tuple[str, frozenset[str]]]:
    """The output head of each encoder that has one, with its parameters."""
    for part in model.index.parts:
        module = model.of(part)
        if part.library != "transformers" or (head := module.get_output_embeddings()) is None:
            continue
        path = next(f"{part.name}.{name}" for name, inner in module.named_modules() if inner is head)
        yield path, frozenset(f"{path}.{name}" for name, _ in head.named_parameters())


def language_model(module: Any) -> Any:
    """The language model inside an encoder of which nothing else is left, where it is one by itself; else None."""
    if not any(isinstance(inner, Absent) for inner in module.modules()):
        return None
    kind = original_class(module).__name__
    path = module.base_model_prefix if kind.endswith("ForCausalLM") else _LANGUAGE_MODELS.get(kind)
    if path is None or not all(name.startswith(f"{path}.") for name in module.state_dict(keep_vars=True)):
        return None
    found = module.get_submodule(path)
    known = isinstance(found, PreTrainedModel) and hasattr(transformers, original_class(found).__name__)
    return found if known else None

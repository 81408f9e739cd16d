"""Any folder with a configuration of transformers: the family of models that have no family of their own.

transformers itself is loaded when a model is, not when a folder is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from umcompress.documents.base import Component, Task
from umcompress.documents.files import read_json
from umcompress.models.family import Family
from umcompress.models.hf.anatomy.components import check_globs, component_of
from umcompress.models.hf.names import CONFIG, MAIN_STACK, WEIGHTS
from umcompress.models.runner import Runner
from umcompress.models.trainer import Trainer

if TYPE_CHECKING:
    from umcompress.checkpoint.disk import DiskTensors
    from umcompress.checkpoint.layout import WeightFiles
    from umcompress.checkpoint.writer import TensorToWrite
    from umcompress.documents.plan import Plan
    from umcompress.graph.model_graph import TaskReads
    from umcompress.models.plain_folder import Plain

_STACKS = "umcompress_stacks"


class TransformersFamily(Family):
    """Causal language models, image-text-to-text models, encoders.

    A plain language model is one component, `shared`. Vision towers and connectors are found by name and serve
    understanding; image heads and decoders serve generation. A recipe's `components` overrules the names.
    """

    name: ClassVar[str] = "transformers"
    main_stack: ClassVar[str] = MAIN_STACK
    general: ClassVar[bool] = True
    layouts: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "deci", "pad")

    def __init__(self, components: Mapping[str, Component] | None = None, trusts: bool = False) -> None:
        self.components, self.trusts = components, trusts

    def matches(self, folder: Path) -> bool:
        try:
            content = read_json(folder / CONFIG)
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and isinstance(content.get("model_type"), str)

    def skeleton(self, folder: Path) -> nn.Module:
        from umcompress.models.hf.load import own_code, skeleton, weights

        model = skeleton.build(folder, self.trusts)
        if self.trusts:
            own_code.mark_trusted(model)
        check_globs(self.components or {}, model)
        weights.fit_to_stored_names(model, folder)
        return self.adopt(model)

    def adopt(self, model: nn.Module) -> nn.Module:
        """A model as transformers builds it, made ready: its stacks are named, its attentions know their heads."""
        from umcompress.models.hf.anatomy import attention, stacks

        # Found once, on the whole model: a stack keeps its name when edits leave little of it.
        setattr(model, _STACKS, stacks.find_stacks(_of_transformers(model)))
        stacks.mark_encoder_states(_of_transformers(model), self.stacks(model).values())
        for path in self.stacks(model).values():
            attention.add_head_protocol(model, path, self.component_of)
        return model

    def fill(self, model: nn.Module, folder: Path, dtype: torch.dtype, device: str) -> None:
        from umcompress.models.hf.load import weights

        weights.fill(_of_transformers(model), folder, dtype, device)
        model.eval()

    def cast(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Buffers that are computed keep their precision."""
        from umcompress.models.hf.load import skeleton

        float32 = skeleton.kept_float32(_of_transformers(model), dtype)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.float32 if name in float32 else dtype)
        return model

    def weight_files(self, model: nn.Module) -> WeightFiles:
        from umcompress.models.hf.load import weights

        return {WEIGHTS: weights.names_on_disk(_of_transformers(model))}

    def left_aside(self, folder: Path, model: nn.Module | None = None) -> Sequence[str]:
        from umcompress.models.hf.load import weights

        return weights.left_aside(_of_transformers(self.skeleton(folder) if model is None else model), folder)

    def file_problems(self, model: nn.Module, folder: Path) -> list[str]:
        from umcompress.models.hf.load import weights

        return weights.problems(_of_transformers(model), folder)

    def sources(
        self, model: nn.Module, values: Mapping[str, TensorToWrite] | None = None
    ) -> dict[str, dict[str, TensorToWrite]]:
        from umcompress.models.hf.load import weights

        return {WEIGHTS: weights.sources(_of_transformers(model), values)}

    def open_disk(self, model: nn.Module, folder: Path) -> DiskTensors:
        from umcompress.models.hf.load import weights

        return weights.open_disk(_of_transformers(model), folder)

    def texts(self, model: nn.Module, folder: Path) -> dict[str, str]:
        from umcompress.models.hf.export import per_layer

        return per_layer.own_configs(_of_transformers(model), self, folder)

    def plain(
        self, model: nn.Module, folder: Path, plans: Sequence[Plan], values: Mapping[str, TensorToWrite] | None = None
    ) -> Plain | str:
        from umcompress.models.hf.export import mixtures, ordinary

        of_transformers = _of_transformers(model)
        if (reason := _why_not_whole(of_transformers)) is not None:
            return f"model/ needs umcompress: {reason}"
        if mixtures.is_split(of_transformers):
            return mixtures.plain_folder(of_transformers, self, folder, values)
        return ordinary.plain_folder(of_transformers, self, folder, values)

    def laid_out(
        self, layout: str, model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None,
        pad: bool = False,
    ) -> Plain | str:
        """vLLM reads what transformers loads by itself, and Llamas whose layers differ as DeciLM."""
        from umcompress.models.hf.export import decilm, filled

        of_transformers = _of_transformers(model)
        if (reason := _why_not_whole(of_transformers)) is not None:
            return reason
        if layout == "deci":
            unpadded = "DeciLM has a width for each layer, and nothing to fill up: leave `pad` out"
            return unpadded if pad else decilm.decilm_folder(of_transformers, values)
        if layout == "pad" or pad:
            return filled.filled_folder(of_transformers, self, folder, values)
        plain = self.plain(model, folder, (), values)
        served = not isinstance(plain, str) and not decilm.has_heads_of_their_own_size(of_transformers)
        if layout == "transformers" or served:
            return plain
        other = decilm.decilm_folder(of_transformers, values)
        if not isinstance(other, str):
            return other
        return f"{plain if isinstance(plain, str) else 'vLLM has no Qwen2 with a head size of its own'}; {other}"

    def stacks(self, model: nn.Module) -> dict[str, str]:
        from umcompress.models.hf.anatomy import stacks

        kept = getattr(model, _STACKS, None)
        if not isinstance(kept, dict):
            return stacks.find_stacks(_of_transformers(model))
        there = {path for path, _ in model.named_modules()}
        return {name: path for name, path in kept.items() if path in there}

    def read_in(self, model: nn.Module, task: Task) -> TaskReads:
        from umcompress.models.hf.paint import one_task

        return one_task.read_in(_of_transformers(model), task)

    def check_removable(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        from umcompress.models.hf.layers.rules import check_removable

        check_removable(_of_transformers(model), self.stacks(model), removed)

    def update_block_counts(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        from umcompress.models.hf.layers.rules import update_block_counts

        update_block_counts(_of_transformers(model), self.stacks(model), removed)

    def component_of(self, path: str) -> Component:
        return component_of(path, self.components)

    def why_no_heads(self, module: nn.Module) -> str:
        """In words, why the heads of an attention cannot be cut."""
        from umcompress.models.hf.anatomy import attention

        found = attention.layout_of(module)
        return found if isinstance(found, str) else ""

    def with_components(self, components: Mapping[str, Component]) -> TransformersFamily:
        return TransformersFamily(components, self.trusts)

    def trusting(self) -> TransformersFamily:
        return TransformersFamily(self.components, trusts=True)

    def runner(self, model: nn.Module, folder: Path) -> Runner:
        from umcompress.models.hf.load import own_code
        from umcompress.models.hf.paint import unified_runner

        found: Runner = unified_runner.runner(_of_transformers(model), folder)
        return own_code.guarded(found, folder) if _of_transformers(model).is_custom_code() else found

    def trainer(self, model: nn.Module, folder: Path) -> Trainer:
        from umcompress.models.hf.load import own_code
        from umcompress.models.hf.train import unified_trainer

        found: Trainer = unified_trainer.trainer(model, folder)
        return own_code.guarded(found, folder) if _of_transformers(model).is_custom_code() else found


def _why_not_whole(model: Any) -> str | None:
    """Why a specialized model is no ordinary one of its architecture; None of any other."""
    from umcompress.rewrite.nn.absent import kept_task

    task = kept_task(model)
    if task is None:
        return None
    return f"it is specialized for {task}, and transformers builds {type(model).__name__} with all of its parts"


def _of_transformers(model: nn.Module) -> Any:
    from transformers import PreTrainedModel

    assert isinstance(model, PreTrainedModel)
    return model

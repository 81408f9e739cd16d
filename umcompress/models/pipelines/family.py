"""Pipelines of diffusers: a text encoder that reads the prompt, a transformer that denoises, an autoencoder.

diffusers and transformers are loaded when a model is, not when a folder is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from umcompress.documents.base import Component, Task
from umcompress.models.family import Family
from umcompress.models.parts_of_folder import INDEX
from umcompress.models.pipelines.index import read_index, require_diffusers
from umcompress.models.runner import Runner
from umcompress.models.trainer import Trainer

if TYPE_CHECKING:
    from umcompress.checkpoint.disk import DiskTensors
    from umcompress.checkpoint.layout import WeightFiles
    from umcompress.checkpoint.writer import TensorToWrite
    from umcompress.documents.plan import Plan
    from umcompress.graph.model_graph import TaskReads
    from umcompress.models.pipelines.parts import PipelineModel
    from umcompress.models.plain_folder import Plain


class PipelineFamily(Family):
    """Encoders of text serve understanding; transformers and the decoder of pictures serve generation."""

    name: ClassVar[str] = "pipeline"
    main_stack: ClassVar[str] = "transformer"
    layouts: ClassVar[tuple[str, ...]] = ("single-file",)

    def matches(self, folder: Path) -> bool:
        return (folder / INDEX).is_file()

    def skeleton(self, folder: Path) -> nn.Module:
        index = read_index(folder)
        require_diffusers(folder)
        from umcompress.models.pipelines import attention, parts, stacks

        built = {part.name: parts.build_part(part, folder, self.component_of(part.name)) for part in index.parts}
        model = parts.PipelineModel(index, built, stacks.find_stacks(index, built), folder)
        for path in self.stacks(model).values():
            blocks = model.get_submodule(path)
            assert isinstance(blocks, nn.ModuleList)
            stacks.mark_given_arguments(blocks)
            attention.add_head_protocol(model, path, self.component_of)
        return model.eval()

    def fill(self, model: nn.Module, folder: Path, dtype: torch.dtype, device: str) -> None:
        from umcompress.models.pipelines import files

        files.fill(_pipeline(model), folder, dtype, device)
        model.eval()

    def cast(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Buffers that are computed keep their precision, and so does what a part keeps in float32."""
        from umcompress.models.pipelines import parts

        pipeline = _pipeline(model)
        for part in pipeline.index.parts:
            module = pipeline.of(part)
            if part.library == "transformers":
                parts.text_family(self.component_of(part.name)).cast(module, dtype)
                continue
            float32 = parts.kept_float32(module, dtype)
            for name, tensor in module.state_dict(keep_vars=True).items():
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(torch.float32 if name in float32 else dtype)
        return model

    def weight_files(self, model: nn.Module) -> WeightFiles:
        from umcompress.models.pipelines import files

        return files.names_on_disk(_pipeline(model))

    def file_problems(self, model: nn.Module, folder: Path) -> list[str]:
        from umcompress.models.pipelines import files

        return files.problems(_pipeline(model), folder)

    def sources(
        self, model: nn.Module, values: Mapping[str, TensorToWrite] | None = None
    ) -> dict[str, dict[str, TensorToWrite]]:
        from umcompress.models.pipelines import files

        return files.sources(_pipeline(model), values)

    def open_disk(self, model: nn.Module, folder: Path) -> DiskTensors:
        from umcompress.models.pipelines import files

        return files.open_disk(_pipeline(model), folder)

    def texts(self, model: nn.Module, folder: Path) -> dict[str, str]:
        from umcompress.models.pipelines import export

        return export.own_texts(_pipeline(model), folder)

    def plain(
        self, model: nn.Module, folder: Path, plans: Sequence[Plan], values: Mapping[str, TensorToWrite] | None = None
    ) -> Plain | str:
        from umcompress.models.pipelines import export

        return export.plain_folder(_pipeline(model), folder, values)

    def laid_out(
        self, layout: str, model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None,
        pad: bool = False,
    ) -> Plain | str:
        """The transformer in one file, with the names that it was first released with."""
        from umcompress.models.pipelines.single_file import single_files

        if pad:
            return "a single file has nothing to fill up: leave `pad` out"
        return single_files(_pipeline(model), folder, values)

    def stacks(self, model: nn.Module) -> dict[str, str]:
        return {name: path for name, path in _pipeline(model).stacks.items() if _has(model, path)}

    def main_stacks(self, model: nn.Module) -> Collection[str]:
        """Of the encoder of text its language model, and every stack of what denoises."""
        from umcompress.models.pipelines.stacks import PAINTS, READS

        return [name for name in self.stacks(model) if name == READS or name.split(".")[0].startswith(PAINTS)]

    def component_of(self, path: str) -> Component:
        from umcompress.models.pipelines.stacks import component_of

        return component_of(path)

    def not_read(self, model: nn.Module) -> dict[str, Task]:
        from umcompress.models.pipelines.depth import not_read

        return not_read(_pipeline(model))

    def read_in(self, model: nn.Module, task: Task) -> TaskReads:
        from umcompress.models.pipelines.one_task import read_in

        return read_in(_pipeline(model), task)

    def check_removable(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        from umcompress.models.pipelines.depth import check_removable

        check_removable(_pipeline(model), removed)

    def update_block_counts(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        from umcompress.models.pipelines.depth import update_block_counts

        update_block_counts(_pipeline(model), removed)

    def why_no_heads(self, module: nn.Module) -> str:
        """In words, why the heads of an attention cannot be cut."""
        from umcompress.models.hf.anatomy import attention as of_transformers
        from umcompress.models.pipelines import attention

        found = attention.layout_of(module) if hasattr(module, "processor") else of_transformers.layout_of(module)
        return found if isinstance(found, str) else ""

    def why_no_channels(self, module: nn.Module) -> str:
        """In words, why the channels of a feed-forward inside of an attention cannot be cut; "" where there is none."""
        from umcompress.models.pipelines import attention

        return attention.why_no_channels(module)

    def runner(self, model: nn.Module, folder: Path) -> Runner:
        from umcompress.models.pipelines.runner import PipelineRunner

        return PipelineRunner(_pipeline(model), folder)

    def trainer(self, model: nn.Module, folder: Path) -> Trainer:
        """Trains encoders of text and what denoises."""
        return self.runner(model, folder).trainer(self)

    def opened(self, model: nn.Module, folder: Path) -> Any:
        """A pipeline object of diffusers around the model's parts."""
        from umcompress.models.pipelines.painting import Painter

        return Painter(_pipeline(model), folder).pipeline()


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _pipeline(model: nn.Module) -> PipelineModel:
    from umcompress.models.pipelines.parts import PipelineModel

    assert isinstance(model, PipelineModel)
    return model

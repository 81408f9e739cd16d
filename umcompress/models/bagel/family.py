"""BAGEL as a family: which folder is one, what its parts are for, how its tasks run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from umcompress.checkpoint.layout import WeightFiles
from umcompress.checkpoint.writer import TensorToWrite
from umcompress.documents.base import Component, Task
from umcompress.documents.plan import Plan
from umcompress.graph.model_graph import TaskReads
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.expert_layout import NOTES
from umcompress.models.bagel.language_part import language_folder
from umcompress.models.bagel.load import assign_weights, disk_names, skeleton
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.moe_folder import has_experts, plain_folder
from umcompress.models.bagel.nemo import with_recipe
from umcompress.models.bagel.omni import omni_folder
from umcompress.models.bagel.ordinary import filled_folder, ordinary_folder
from umcompress.models.bagel.runner import BagelRunner
from umcompress.models.bagel.served import served_folder
from umcompress.models.bagel.trainer import BagelTrainer
from umcompress.models.family import Family
from umcompress.models.measure import read_by
from umcompress.models.plain_folder import Plain
from umcompress.models.runner import Runner
from umcompress.models.trainer import Trainer
from umcompress.rewrite.nn.absent import kept_task

GENERATION = ("time_embedder", "vae2llm", "llm2vae", "latent_pos_embed", "vae")
SHARED = ("language_model.model.embed_tokens",)


class BagelFamily(Family):
    """Dual-weight decoder with a vision tower and a latent autoencoder.

    Text runs through the plain weights in both tasks; they count as understanding, as in the study.
    """

    name: ClassVar[str] = "bagel"
    main_stack: ClassVar[str] = "decoder"
    layouts: ClassVar[tuple[str, ...]] = ("bagel", "transformers", "vllm", "vllm-omni", "nemo", "pad")

    def matches(self, folder: Path) -> bool:
        return (folder / "llm_config.json").is_file() and (folder / "vit_config.json").is_file()

    def skeleton(self, folder: Path) -> nn.Module:
        return skeleton(BagelConfig.from_folder(folder))

    def fill(self, model: nn.Module, folder: Path, dtype: torch.dtype, device: str) -> None:
        assign_weights(model, folder, dtype, device)

    def cast(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The autoencoder stays float32."""
        model.to(dtype).get_submodule("vae").to(torch.float32)
        return model

    def weight_files(self, model: nn.Module) -> WeightFiles:
        return disk_names(model)

    def notes(self, folder: Path) -> dict[str, str]:
        """Where the original has experts: a compressed model's own weights no longer tell."""
        experts = BagelConfig.from_folder(folder).experts
        layers = [layer.model_dump() for layer in experts]
        return {NOTES: json.dumps(layers, indent=1) + "\n"} if layers else {}

    def plain(
        self, model: nn.Module, folder: Path, plans: Sequence[Plan], values: Mapping[str, TensorToWrite] | None = None
    ) -> Plain | str:
        if (task := kept_task(model)) is not None:
            return f"model/ needs umcompress: it is specialized for {task}, and no plain BAGEL"
        if has_experts(model):
            return plain_folder(model, folder, plans, values)
        return ordinary_folder(model, folder, values)

    def laid_out(
        self, layout: str, model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None,
        pad: bool = False,
    ) -> Plain | str:
        """`pad` makes a plain BAGEL of streams or blocks that differ in width.

        vLLM reads only what understands, and transformers of that the language model.
        """
        if layout == "vllm" and not pad:
            return served_folder(model, folder, values)
        if layout == "vllm-omni" and not pad:
            return omni_folder(model, folder, values)
        if layout == "transformers":
            return "filled up it is a plain BAGEL (pad)" if pad else language_folder(model, folder, values)
        if (task := kept_task(model)) is not None:
            return f"it is specialized for {task}, and a plain BAGEL does both"
        if has_experts(model):
            return "experts are no part of a plain BAGEL"
        if layout == "pad" or pad:
            plain = filled_folder(model, self, folder, values)
        else:
            plain = ordinary_folder(model, folder, values, unchanged=True)
        return with_recipe(plain, folder) if layout == "nemo" and not isinstance(plain, str) else plain

    def stacks(self, model: nn.Module) -> dict[str, str]:
        stacks = {"decoder": "language_model.model.layers", "vision": "vit_model.vision_model.encoder.layers"}
        there = {name for name, _ in model.named_modules()}
        return {stack: path for stack, path in stacks.items() if path in there}

    def component_of(self, path: str) -> Component:
        if "_moe_gen" in path or path.split(".", 1)[0] in GENERATION:
            return "generation"
        return "shared" if path.startswith(SHARED) else "understanding"

    def not_read(self, model: nn.Module) -> dict[str, Task]:
        """In the last block the picture has read the text by its attention; the text goes through one part more."""
        last = len(model.get_submodule(self.stacks(model)["decoder"])) - 1  # type: ignore[arg-type]
        path = f"{self.stacks(model)['decoder']}.{last}.mlp"
        return {path: "generation"} if any(name == path for name, _ in model.named_modules()) else {}

    def read_in(self, model: nn.Module, task: Task) -> TaskReads:
        """What the task's tokens go through, and what is there for it beside: the encoder of pictures to train on."""
        assert isinstance(model, Bagel)
        names = (name for name, _ in model.named_parameters(remove_duplicate=False))
        own = frozenset(name for name in names if self.component_of(name) == task)
        return TaskReads(read_by(model, BagelRunner(model, Path()), task) | own)

    def runner(self, model: nn.Module, folder: Path) -> Runner:
        assert isinstance(model, Bagel)
        return BagelRunner(model, folder)

    def trainer(self, model: nn.Module, folder: Path) -> Trainer:
        assert isinstance(model, Bagel)
        return BagelTrainer(model, folder)

"""All that passes and evaluations may see, shipped ones and users' own alike.

A pass reads and proposes; an evaluation scores.  Both are pydantic documents whose fields are the options of
a recipe.  They are found by entry point, or by `path/to/file.py:Class`.  Importing this loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umcompress.calibrate.declare import (
    BlockSimilarity,
    BranchKind,
    BranchSimilarity,
    ChannelActivation,
    ChannelMoments,
    ChannelSamples,
    ContributionMoments,
    Declaration,
    HeadContribution,
    RoutedMoments,
    Routing,
    Scope,
)
from umcompress.calibrate.statistics import (
    Channels,
    Contributions,
    Heads,
    Moments,
    Routed,
    Samples,
    Similarity,
    Statistics,
)
from umcompress.checkpoint.tensor_file import TensorFile
from umcompress.documents.plan import (
    Declined,
    DropBlock,
    DropBranch,
    Edit,
    Evidence,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.documents.report import KindScore, Score
from umcompress.documents.training_options import LossWeights, TrainingOptions
from umcompress.errors import PlanError
from umcompress.extend.evaluation_base import Evaluation, ScoredItem
from umcompress.extend.pass_base import Pass, Proposal, ScopedPass, SitePass, TrainingPass, parse_layers
from umcompress.extend.registry import evaluations, find_evaluation, find_pass, passes
from umcompress.graph.sites import AttentionSite, BlockSite, BranchSite, ExpertSite, FeedForwardSite
from umcompress.recipe.recipe import Calibration, Component, Document, Ratio, Task

if TYPE_CHECKING:
    from umcompress.graph.expert_place import SplitPlace
    from umcompress.graph.model_graph import ModelGraph


def __getattr__(name: str) -> Any:
    """ModelGraph and SplitPlace, for annotations: they bring torch, so they load when somebody asks for them."""
    if name in ("ModelGraph", "SplitPlace"):
        from umcompress.graph import model_graph

        return getattr(model_graph, name)
    raise AttributeError(f"umcompress.extend has no {name}")


__all__ = [
    "AttentionSite",
    "BlockSimilarity",
    "BlockSite",
    "BranchKind",
    "BranchSimilarity",
    "BranchSite",
    "Calibration",
    "ChannelActivation",
    "ChannelMoments",
    "ChannelSamples",
    "Channels",
    "Component",
    "ContributionMoments",
    "Contributions",
    "Declaration",
    "Declined",
    "Document",
    "DropBlock",
    "DropBranch",
    "Edit",
    "Evaluation",
    "Evidence",
    "ExpertSite",
    "FeedForwardSite",
    "HeadContribution",
    "Heads",
    "KeepChannels",
    "KeepHeads",
    "KindScore",
    "LossWeights",
    "ModelGraph",
    "Moments",
    "Pass",
    "Plan",
    "PlanError",
    "Proposal",
    "Ratio",
    "Routed",
    "RoutedMoments",
    "Routing",
    "Samples",
    "Scope",
    "ScopedPass",
    "Score",
    "ScoredItem",
    "SetTensors",
    "Similarity",
    "SitePass",
    "SplitExperts",
    "SplitPlace",
    "Statistics",
    "Task",
    "TensorFile",
    "TrainingOptions",
    "TrainingPass",
    "evaluations",
    "find_evaluation",
    "find_pass",
    "parse_layers",
    "passes",
]

"""All that passes and evaluations may import, shipped ones and users' own alike.

A pass reads and proposes; an evaluation scores.  Both are pydantic documents whose fields are the options of
a recipe.  They are found by entry point, or by `path/to/file.py:Class`.  Importing this loads no torch.

Scores: `score_of_grades` of single items, which are kept, so that changes are compared item by item.  `with_grades`
puts items into one made by `proportion`, `mean_score`, `grouped_proportion`, `mean_of_kinds` or `score_of_counts`;
`with_numbers` adds published numbers and how they are `Made` of the items, so that their changes are paired, too.
Errors: raise `UsageError`, `ModelError` or `PlanError` with what was asked, what was found, what to do.
`files` and `open_picture`: read what a user named; regular files only, and what is damaged or a bomb is refused.
`trainer_of`: what computes the losses of a runner's model; `TrainingFile`: items from a user's file.
`atomic_file`, `write_text_atomic`: a killed run leaves nothing half-written.  `Progress`: a bar with the time left;
`counting` shows one that hears from a runner (`passed`) how many samples, pictures or questions are through.
`processes`: share work and gather results where several processes were launched.
Files: `text_of` reads one, `lines_of` gives its lines; `splitlines` would split JSON strings that hold U+2028.
Items: what `calibration_items` and `training_items` return.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from umcompress import processes
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
from umcompress.documents import files
from umcompress.documents.atomic import atomic_file, write_text_atomic
from umcompress.documents.lines import lines_of, text_of
from umcompress.documents.plan import (
    Declined,
    DropBlock,
    DropBranch,
    DropModule,
    Edit,
    Evidence,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.documents.training_options import LossWeights, TrainingOptions
from umcompress.errors import ModelError, PlanError, UmcompressError, UsageError, did_you_mean
from umcompress.extend.pass_base import Pass, Proposal, ScopedPass, SitePass, TrainingPass, parse_layers
from umcompress.extend.registry import evaluations, find_evaluation, find_pass, passes
from umcompress.graph.sites import AttentionSite, BlockSite, BranchSite, ExpertSite, FeedForwardSite
from umcompress.progress import Progress, counting, passed
from umcompress.recipe.recipe import Calibration, Component, Document, Ratio, Task

if TYPE_CHECKING:
    from umcompress.data.training_file import TrainingFile
    from umcompress.documents.numbers import Made
    from umcompress.documents.scores import (
        KindScore,
        Score,
        grouped_proportion,
        mean_of_kinds,
        mean_score,
        proportion,
        score_of_counts,
        score_of_grades,
        with_grades,
        with_numbers,
    )
    from umcompress.extend.evaluation_base import Evaluation, ScoredItem
    from umcompress.graph.expert_place import SplitPlace
    from umcompress.graph.model_graph import ModelGraph
    from umcompress.models.item_losses import trainer_of
    from umcompress.models.items import GenerationItem, ImageText, TextSample, TrainingItem, UnderstandingItem
    from umcompress.models.pictures import open_picture
    from umcompress.models.runner import Runner

# Imported when somebody asks for them: some bring torch or numpy, and listing passes needs no documents of scores.
_IMPORTED_LATE = {
    name: module
    for module, names in {
        # A source of items like any evaluation, though it lies above.
        "umcompress.data.training_file": ("TrainingFile",),
        "umcompress.documents.numbers": ("Made",),
        "umcompress.documents.scores": (
            "KindScore", "Score", "grouped_proportion", "mean_of_kinds", "mean_score", "proportion", "score_of_counts",
            "score_of_grades", "with_grades", "with_numbers",
        ),
        "umcompress.extend.evaluation_base": ("Evaluation", "ScoredItem"),
        "umcompress.graph.expert_place": ("SplitPlace",),
        "umcompress.graph.model_graph": ("ModelGraph",),
        "umcompress.models.item_losses": ("trainer_of",),
        "umcompress.models.items": ("GenerationItem", "ImageText", "TextSample", "TrainingItem", "UnderstandingItem"),
        "umcompress.models.pictures": ("open_picture",),
        "umcompress.models.runner": ("Runner",),
    }.items()
    for name in names
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import one of the names that are imported late."""
    if name not in _IMPORTED_LATE:
        raise AttributeError(f"umcompress.extend has no {name}")
    return getattr(import_module(_IMPORTED_LATE[name]), name)


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
    "DropModule",
    "Edit",
    "Evaluation",
    "Evidence",
    "ExpertSite",
    "FeedForwardSite",
    "GenerationItem",
    "HeadContribution",
    "Heads",
    "ImageText",
    "KeepChannels",
    "KeepHeads",
    "KindScore",
    "LossWeights",
    "Made",
    "ModelError",
    "ModelGraph",
    "Moments",
    "Pass",
    "Plan",
    "PlanError",
    "Progress",
    "Proposal",
    "Ratio",
    "Routed",
    "RoutedMoments",
    "Routing",
    "Runner",
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
    "TextSample",
    "TrainingFile",
    "TrainingItem",
    "TrainingOptions",
    "TrainingPass",
    "UmcompressError",
    "UnderstandingItem",
    "UsageError",
    "atomic_file",
    "counting",
    "did_you_mean",
    "evaluations",
    "files",
    "find_evaluation",
    "find_pass",
    "grouped_proportion",
    "lines_of",
    "mean_of_kinds",
    "mean_score",
    "open_picture",
    "parse_layers",
    "passed",
    "passes",
    "processes",
    "proportion",
    "score_of_counts",
    "score_of_grades",
    "text_of",
    "trainer_of",
    "with_grades",
    "with_numbers",
    "write_text_atomic",
]

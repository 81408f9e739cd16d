"""From the name of a model to its folder and family."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from umcompress.discover import entries
from umcompress.errors import ModelError, did_you_mean
from umcompress.models.base import Family

FAMILIES = "umcompress.families"
BUILT_IN = {"bagel-mini": "bagel_mini"}
RECORD = "umcompress.json"


def resolve_folder(model: str) -> Path:
    """The folder of a built-in model or of a path.  ModelError where there is none."""
    if model in BUILT_IN:
        return Path(str(resources.files("umcompress.models") / BUILT_IN[model]))
    folder = Path(model)
    if not folder.is_dir():
        hint = did_you_mean(model, BUILT_IN)
        raise ModelError(
            asked=f"the model {model}",
            found="a file, not a folder" if folder.exists() else "no such built-in model, and no such folder",
            do=f"{hint} (built in: {', '.join(BUILT_IN)}); or give the path of a model folder",
        )
    # The output folder of a run holds the model in `model/`.
    inner = folder / "model"
    return inner if (inner / RECORD).is_file() and not (folder / RECORD).is_file() else folder


def find_family(folder: Path) -> Family:
    """The family whose kind of folder this is.  ModelError where no family knows it."""
    known = entries(FAMILIES)
    for entry in (entry for offers in known.values() for entry in offers):
        family = entry.load()()
        if isinstance(family, Family) and family.matches(folder):
            return family
    files = sorted(path.name for path in folder.iterdir())[:8]
    raise ModelError(
        asked=f"the kind of model in {folder}",
        found=f"no known kind; it holds {', '.join(files) or 'nothing'}",
        do=f"known kinds: {', '.join(sorted(known))} (BAGEL folders have llm_config.json and vit_config.json)",
    )

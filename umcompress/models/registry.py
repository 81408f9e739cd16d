"""From the name of a model to its folder and family."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from umcompress.documents.file_names import NEMO_WEIGHTS, RECORD, RUN
from umcompress.documents.files import read_json
from umcompress.documents.model_names import BUILT_IN, is_hub_id
from umcompress.documents.unfinished_run import unfinished
from umcompress.errors import ModelError, nearest
from umcompress.models.family import Family
from umcompress.models.hub import hub_folder
from umcompress.plugins import entries

FAMILIES = "umcompress.families"
# What peft saves in place of a model.
ADAPTER = "adapter_config.json"
CONFIG = "config.json"


def resolve_folder(model: str, code: bool = False) -> Path:
    """The folder of a built-in model, of a path, or of a hub id.  ModelError where there is none.

    code: of a hub id, whether Python files are fetched, too.
    """
    if model in BUILT_IN:
        return Path(str(resources.files("umcompress.models") / BUILT_IN[model]))
    folder = Path(model)
    try:
        there, is_folder = folder.exists(), folder.is_dir()
    except OSError:  # a name that no file can have
        there = is_folder = False
    if not there and is_hub_id(model):
        return hub_folder(model, code)
    if not is_folder:
        # A name in a recipe has become a path in the recipe's folder.
        close = nearest(folder.name, BUILT_IN)
        guess = f"did you mean {close!r}? " if close else ""
        raise ModelError(
            asked=f"the model {model}",
            found="a file, not a folder" if there else "no such built-in model, and no such folder",
            do=f"{guess}give the path of a model folder, or a built-in model: {', '.join(BUILT_IN)}",
        )
    # The output folder of a run holds the model in `model/`.
    inner = folder / "model"
    if not inner.is_dir() and (said := unfinished(folder, "the model")) is not None:
        raise ModelError(f"the model {model}", *said)
    ran = (folder / RUN).is_file() and inner.is_dir()
    return inner if (ran or (inner / RECORD).is_file()) and not (folder / RECORD).is_file() else folder


def find_family(folder: Path) -> Family:
    """The family whose kind of folder this is.  ModelError where no family knows it."""
    known = entries(FAMILIES)
    broken = []
    matching: list[Family] = []
    for entry in (entry for offers in known.values() for entry in offers):
        try:
            family = entry.load()()
        except Exception as error:  # somebody else's module may raise anything; the others still count
            broken.append(f"{entry.name} does not import: {error}")
            continue
        if isinstance(family, Family) and family.matches(folder):
            matching.append(family)
    if matching:
        return min(matching, key=lambda family: family.general)
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"the kind of model in {folder}", f"an adapter ({ADAPTER}), without the model that it changes",
            "merge it into that model first: merge_and_unload() of peft, then save_pretrained()",
        )
    if (folder / NEMO_WEIGHTS).is_dir():
        raise ModelError(
            f"the kind of model in {folder}", "a checkpoint of NeMo AutoModel",
            f"of a BAGEL: umcompress export {folder} --to bagel -o NEW, and name NEW; of a model of transformers: name "
            f"{folder / NEMO_WEIGHTS}",
        )  # fmt: skip
    if (problem := _config_problem(folder / CONFIG)) is not None:
        raise ModelError(f"the kind of model in {folder}", *problem)
    files = sorted(path.name for path in folder.iterdir())[:8]
    raise ModelError(
        asked=f"the kind of model in {folder}",
        found="; ".join([f"no known kind; it holds {', '.join(files) or 'nothing'}", *broken]),
        do=f"known kinds: {', '.join(sorted(known))} (BAGEL folders have llm_config.json, vit_config.json)",
    )


def _config_problem(file: Path) -> tuple[str, str] | None:
    """What is wrong with a configuration that says of no model what it is, and what to do; None where there is none."""
    if not file.exists():
        return None
    again = "get the file again, as the model came with it"
    try:
        content = read_json(file)
    except OSError as error:
        return f"{CONFIG} cannot be read: {error.strerror}", again
    except ValueError as error:
        return f"{CONFIG} is not JSON: {error}", again
    if isinstance(content, dict) and "model_type" in content:
        return f"{CONFIG} has model_type: {content['model_type']!r}", "give it the name of an architecture, a string"
    if isinstance(content, dict) and "_class_name" in content:
        part = f"one part of a pipeline of diffusers, {content['_class_name']}"
        return part, "name the folder of the pipeline, which has model_index.json"
    return f"{CONFIG} does not say what model it is: it has no model_type", again

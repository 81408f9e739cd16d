"""Python code that comes with a model: which files its configurations name. Nothing here runs any of it.

transformers writes `auto_map: {AutoModel: modeling_x.XModel}` and, where code is in another repository,
`organisation/name--modeling_x.XModel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from umcompress.documents.files import read_json, read_text
from umcompress.errors import ModelError

MAP = "auto_map"
_MODEL = ("config.json", "base_config.json")
_HOLDERS = (
    *_MODEL, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
_LOCAL = re.compile(r"[\w-]+\.\w+")
# As transformers looks for them: it copies these files, and no others.
_IMPORTS = (r"^\s*import\s+\.(\w+)\s*$", r"^\s*from\s+\.(\w+)\s+import")


def references(folder: Path) -> list[str]:
    """`module.Class` of everything that the folder's files name, once each, sorted."""
    found: set[str] = set()
    for name in _HOLDERS:
        try:
            content = read_json(folder / name)
        except (OSError, ValueError):
            continue
        found.update(_maps(content, deep=name not in _MODEL))
    return sorted(found)


def _maps(content: Any, deep: bool) -> Iterator[str]:
    """deep: those of parts, too. Of a model's configuration transformers reads the outermost alone."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key == MAP:
            yield from _strings(value)
        elif deep:
            yield from _maps(value, deep)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def code_files(folder: Path) -> tuple[str, ...]:
    """The files of the folder that are run when the model is opened with consent; those that are not there, too."""
    wanted = [f"{name.partition('.')[0]}.py" for name in references(folder) if _LOCAL.fullmatch(name)]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        if (folder / name).is_file():
            text = read_text(folder / name, errors="replace")
            wanted += [f"{module}.py" for rule in _IMPORTS for module in re.findall(rule, text, re.MULTILINE)]
    return tuple(sorted(found))


def missing_code(folder: Path) -> tuple[str, ...]:
    """Files that are named and not there."""
    return tuple(name for name in code_files(folder) if not (folder / name).is_file())


def require_local_code(folder: Path) -> None:
    """ModelError where the code is not in the folder, but in another repository or nowhere.

    What is consented to is code that can be read beforehand and that is copied with the result.
    """
    asked = f"the code that comes with the model in {folder}"
    if other := sorted({name.partition("--")[0] for name in references(folder) if "--" in name}):
        raise ModelError(
            asked, f"it is in another repository: {', '.join(other)}",
            f"copy its Python files into the folder, and write {MAP} without `{other[0]}--`",
        )  # fmt: skip
    if missing := missing_code(folder):
        raise ModelError(asked, f"no {', '.join(missing)}", "copy the Python files of the model into its folder")


def untrusted_code(folder: Path, what: str) -> ModelError:
    """What to say where code would have to run and nobody has consented."""
    files, there = code_files(folder), sorted({name for name in references(folder) if "--" in name})
    return ModelError(
        f"open {what} in {folder}",
        f"it comes with Python code of its own, which was not run: {', '.join([*files, *there]) or 'no file is named'}",
        "read it; if you trust it, write `trust_remote_code: true` in the recipe, give --trust-remote-code to other "
        "commands, or call umcompress.load(folder, trust_remote_code=True)",
    )

"""Which files of a user's own a pass or an evaluation is made of: its file, and what that imports, however far.

Files are read, not run: what is imported inside of functions counts as well. Packages that are installed count by
their versions.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_OURS = "umcompress"


def own_code(kind: type[object]) -> tuple[list[Path], dict[str, str]]:
    """The files that a class of the user's is made of, and the versions of installed packages that these import.

    Nothing for our own classes: they go by our version.
    """
    if kind.__module__.partition(".")[0] == _OURS:
        return [], {}
    start = Path(inspect.getfile(kind)).resolve()
    files, versions, waiting = dict.fromkeys([start]), dict[str, str](), [start]
    while waiting:
        file = waiting.pop()
        for name in _imported(file):
            found = _located(name, file)
            if found is None:
                versions.update(_version(name.partition(".")[0]))
            elif found not in files:
                files[found] = None
                waiting.append(found)
    return sorted(files), versions


def _imported(file: Path) -> Iterator[str]:
    """Names of modules that a file imports, `.x` for those beside it in its package; names in `from` may be modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # whoever runs it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from [base] if node.level else _with_packages(base)
            yield from (f"{base}{'' if base.endswith('.') else '.'}{alias.name}" for alias in node.names)


def _with_packages(name: str) -> Iterator[str]:
    """`a.b.c` runs the files of `a` and `a.b`, too."""
    parts = name.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _located(name: str, importer: Path) -> Path | None:
    """The file of a module that is the user's own; None for installed and built-in ones, and for what is no module."""
    if name.startswith("."):
        up = len(name) - len(name.lstrip("."))
        return _file_in(importer.parents[up - 1], name.lstrip("."))
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == _OURS:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    places = [Path(place).parent for place in (spec.submodule_search_locations or ())] if spec else []
    if spec is not None and spec.origin is not None and not places:
        places = [Path(spec.origin).parent]
    for place in places:
        if not any(place.resolve().is_relative_to(installed) for installed in _installed()):
            return _file_in(place.resolve(), name)
    return None


def _file_in(folder: Path, name: str) -> Path | None:
    path = folder.joinpath(*name.split(".")) if name else folder
    return next((f.resolve() for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


@cache
def _installed() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib", "stdlib"))


@cache
def _offered() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _version(top: str) -> dict[str, str]:
    if not top or top in sys.stdlib_module_names or top == _OURS:
        return {}
    return {name: importlib.metadata.version(name) for name in _offered().get(top, ())}

"""Load classes of users: by entry point, or from a file that a recipe names.

Names are listed without importing anything; a broken entry point says so when it is named, not before.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from umcompress.errors import UsageError, did_you_mean


@cache
def entries(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name, read once.  One name may be offered by several distributions."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        offers = found.setdefault(entry.name, [])
        if all(entry.value != other.value for other in offers):
            offers.append(entry)
    return found


def load_class(group: str, name: str, base: Path | None, kind: type[object], word: str) -> type[Any]:
    """The class that `name` stands for, a subclass of `kind`.  UsageError says what is wrong."""
    if ".py:" in name or name.endswith(".py"):
        path, _, attribute = name.rpartition(".py")
        return _from_file((base or Path()) / f"{path}.py", attribute.removeprefix(":"), kind, word)
    offers = entries(group)
    if name not in offers:
        raise UsageError(f"unknown {word} {name!r}", do=did_you_mean(name, offers))
    if len(offers[name]) > 1:
        sources = ", ".join(entry.value for entry in offers[name])
        raise UsageError(f"{word} {name!r}", f"several offers: {sources}", "name one as file.py:Class")
    entry = offers[name][0]
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:  # somebody else's module may raise anything; it is reported, not swallowed
        raise UsageError(
            f"{word} {name!r}", f"{entry.value} does not import: {_brief(error)}", "mend its package"
        ) from error
    return _checked(found, f"{word} {name!r} ({entry.value})", kind)


def _from_file(path: Path, attribute: str, kind: type[object], word: str) -> type[Any]:
    asked = f"{word} {path.name}:{attribute}"
    if not path.is_file():
        raise UsageError(asked, f"there is no file {path}", "the path is relative to the recipe's folder")
    try:
        module = _module(path.resolve())
    except (Exception, SystemExit) as error:  # as above
        raise UsageError(asked, f"{path} does not import: {_brief(error)}", "mend the file") from error
    candidates = [
        key
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, kind) and value.__module__ == module.__name__
    ]
    if attribute not in vars(module):
        offer = f"it defines {', '.join(candidates)}" if candidates else f"it defines no {word}"
        do = f"write {path.name}:{candidates[0]}" if candidates else f"define a subclass of {kind.__name__}"
        raise UsageError(asked, f"{path} has no {attribute or 'class of no name'}; {offer}", do)
    return _checked(getattr(module, attribute), asked, kind)


def _module(path: Path) -> ModuleType:
    """The file as a module.  Its name holds a digest of the text, so an edited file is read anew."""
    text = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + b"\0" + text).hexdigest()[:16]
    name = f"umcompress_file_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # pydantic resolves annotations through sys.modules, so the module has to be there while it runs
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _checked(found: object, asked: str, kind: type[object]) -> type[Any]:
    if not (inspect.isclass(found) and issubclass(found, kind)):
        raise UsageError(
            asked, f"it is {found!r}", f"derive the class from umcompress.extend.{kind.__name__}"
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UsageError(asked, f"{found.__name__} does not define {', '.join(missing)}", "define it")
    if not isinstance(getattr(found, "name", None), str):
        raise UsageError(asked, f"{found.__name__} has no name", 'add  name: ClassVar[str] = "..."')
    return found


def _brief(error: BaseException) -> str:
    line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{type(error).__name__}: {error}{line}".splitlines()[0]

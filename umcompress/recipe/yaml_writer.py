"""Write values as YAML text that every YAML parser reads back unchanged.

Written here because general emitters are too clever: some leave words such as `:0` unquoted that no parser,
their own included, reads again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# What readers of YAML 1.1 or 1.2 take for something other than text.
_TAKEN = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])


def yaml_text(value: dict[str, Any]) -> str:
    """A mapping in block style, one key a line, its order kept."""
    return "\n".join(_block(value, "")) + "\n" if value else "{}\n"


def _block(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            head = f"{indent}{_scalar(str(key))}:"
            if _nested(item):
                yield head
                yield from _block(item, f"{indent}  ")
            else:
                yield f"{head} {_scalar(item)}"
        return
    for item in value:
        if not _nested(item):
            yield f"{indent}- {_scalar(item)}"
            continue
        lines = list(_block(item, f"{indent}  "))
        yield f"{indent}- {lines[0].lstrip()}"
        yield from lines[1:]


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) and len(value) > 0


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _TAKEN
        return value if plain else '"' + "".join(map(_character, value)) + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict | list | tuple):
        return "{}" if isinstance(value, dict) else "[]"
    raise TypeError(f"{type(value).__name__} has no place in a recipe")


def _float(value: float) -> str:
    text = repr(value)
    if text in ("inf", "-inf", "nan"):
        return text.replace("inf", ".inf").replace("nan", ".nan")
    # YAML 1.1 takes 1e-05 for text, and 1.0e-05 for a number.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    code = ord(character)
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"

"""YAML text with its line numbers, and `--set` overrides on top: the data, and the line of each value.

The text is composed to nodes and built here, not by a loader, so that every key keeps its line and a key that
occurs twice is reported beside the other problems instead of ending the reading.
"""

from __future__ import annotations

import io
import re
from itertools import accumulate
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from umcompress.errors import Problem, RecipeError

Path = tuple[str | int, ...]
# A recipe is a page of text. More values than this are aliases multiplied into each other.
_MOST_VALUES = 100_000
_MOST_CHARACTERS, _MOST_EVENTS, _DEEPEST = 500_000, 20_000, 50
_TOO_DEEP = f"more than {_DEEPEST} levels inside each other"
# What ruamel raises for escapes and tags that no value can be made of.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_LARGEST = 2**63
# No file name holds a NUL, and half of a surrogate pair cannot be printed.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
# An escape of 8 digits past the last character that there is.
_NO_CHARACTER = re.compile(r"\\U(?!000[0-9a-f]|0010)[0-9a-f]{8}", re.IGNORECASE)
_MERGE = "tag:yaml.org,2002:merge"
_KINDS = {"null": "null", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in _KINDS)


def dotted(path: Path) -> str:
    """`("steps", 1, "keep_ratio")` -> `steps.1.keep_ratio`, the form that `--set` takes."""
    return ".".join(str(part) for part in path)


class Override(str):
    """`dotted.path=value`, and where it was said: errors name that in place of `--set`.

    own: the recipe said it, so that paths are seen from its folder.
    """

    origin: str
    own: bool

    def __new__(cls, text: str, origin: str, own: bool = False) -> Override:
        made = super().__new__(cls, text)
        made.origin, made.own = origin, own
        return made


class YamlText:
    """A parsed YAML text: `data` (plain values), the line of each path, and the problems met on the way."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._lines: dict[Path, int] = {(): 1}
        self._overridden: dict[Path, str] = {}
        # Of those, what the recipe itself gives a cell of its grid.
        self._own: set[Path] = set()
        self._count = 0
        self._yaml = YAML(typ="safe", pure=True)
        self.data: Any = self._read(text)

    def _read(self, text: str) -> Any:
        try:
            self._look_at_size(text)
            root = self._yaml.compose(io.StringIO(text))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what, hint = _explained(error)
            raise RecipeError(
                [Problem(self.file, mark.line + 1 if mark else None, "", f"not valid YAML: {what}", hint)]
            ) from error
        except YAMLError as error:
            message = f"not valid YAML: {_first_line(error)}"
            raise RecipeError([Problem(self.file, None, "", message)]) from error
        except _MALFORMED as error:
            raise RecipeError([self._malformed(text, error)]) from error
        return None if root is None else self._build(root, (), ())

    def _malformed(self, text: str, error: Exception) -> Problem:
        """What the parser could not make a value of: an escape past the last character, or what it says itself."""
        if (escape := _NO_CHARACTER.search(text)) is None:
            return Problem(self.file, None, "", f"not valid YAML: {_first_line(error)}")
        message = f"not valid YAML: {escape[0]} is no character"
        return Problem(self.file, text.count("\n", 0, escape.start()) + 1, "", message, "the last one is \\U0010FFFF")

    def _look_at_size(self, text: str) -> None:
        """RecipeError for what is no recipe by its size or depth, before nodes are made: that goes down into it."""
        if len(text) > _MOST_CHARACTERS:
            found = f"{len(text)} characters; a recipe has up to {_MOST_CHARACTERS}"
            raise RecipeError([Problem(self.file, None, "", f"not usable YAML: {found}")])
        level = accumulate((character in "[{") - (character in "]}") for character in text if character in "[{]}")
        if max(level, default=0) > _DEEPEST:  # ruamel takes minutes for a few kilobytes of them
            raise RecipeError([Problem(self.file, None, "", f"not usable YAML: {_TOO_DEEP}")])
        depth = 0
        for count, event in enumerate(YAML(typ="safe", pure=True).parse(io.StringIO(text))):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > _DEEPEST or count > _MOST_EVENTS:
                why = _TOO_DEEP if depth > _DEEPEST else "far too many values"
                raise RecipeError([Problem(self.file, event.start_mark.line + 1, "", f"not usable YAML: {why}")])

    def _build(self, node: Node, path: Path, above: tuple[int, ...]) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if id(node) in above or self._count > _MOST_VALUES:
            why = "an alias that contains itself" if id(node) in above else "far too many values"
            line = node.start_mark.line + 1
            raise RecipeError([Problem(self.file, line, dotted(path), f"not usable YAML: {why}")])
        below = (*above, id(node))
        if isinstance(node, MappingNode):
            return self._build_mapping(node, path, below)
        if isinstance(node, SequenceNode):
            return [self._build(item, (*path, index), below) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _build_mapping(self, node: MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        built: dict[str, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if str(key_node.tag) == _MERGE:
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem(self.file, line, dotted(path), "a key must be a word"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in built:
                first = self._lines[here]
                message = f"the key occurs twice (first on line {first})"
                self.problems.append(Problem(self.file, line, dotted(here), message, "keep one of the two"))
                continue
            self._lines[here] = line
            built[key] = self._build(value_node, here, above)
        for other in merged:
            built = self._merged(other, path, above) | built
        return built

    def _merged(self, node: Node, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        """What `<<: *name` brings; a key that is there already stays, with its line."""
        if not isinstance(node, MappingNode):
            line = node.start_mark.line + 1
            self.problems.append(Problem(self.file, line, dotted(path), "`<<` merges mappings only"))
            return {}
        mine, self._lines = self._lines, {}
        found: dict[str, Any] = self._build(node, path, above)
        self._lines |= mine
        return found

    def _scalar(self, node: Node, path: Path) -> Any:
        # ruamel would make dates and bytes of some plain words; a recipe has neither, so they stay text.
        line, written = node.start_mark.line + 1, str(node.value)
        try:
            value = self._yaml.constructor.construct_object(node) if str(node.tag) in _SCALARS else written
        except (*_MALFORMED, YAMLError):
            kind = _KINDS[str(node.tag).rpartition(":")[2]]
            self.problems.append(Problem(self.file, line, dotted(path), f"not {kind}: {_cut(written)}"))
            return None
        if isinstance(value, int) and abs(value) >= _LARGEST:
            self.problems.append(Problem(self.file, line, dotted(path), f"too large a number: {_cut(written)}"))
            return None
        if isinstance(value, str) and _NO_TEXT.search(value):
            found = f"a character that no text has: {_cut(written)}"
            self.problems.append(Problem(self.file, line, dotted(path), found))
            return None
        return value

    def override(self, option: str) -> None:
        """Apply `dotted.path=value` (the value is YAML, list indices count from 0). Problems are kept."""
        said = option.origin if isinstance(option, Override) else f"--set {option}"
        origin = said if len(said) <= 200 else f"{said[:197]}..."
        target, equals, text = option.partition("=")
        if not equals or not target.strip():
            hint = "write it as --set steps.1.keep_ratio=0.25"
            self.problems.append(Problem(origin, None, "", "an override is PATH=VALUE", hint))
            return
        try:
            read = YamlText(text, origin)
        except RecipeError as error:
            self.problems.extend(Problem(origin, None, target, item.message, item.hint) for item in error.problems)
            return
        if read.problems:
            self.problems.extend(Problem(origin, None, target, item.message, item.hint) for item in read.problems)
            return
        self.set(target.strip(), read.data, origin, isinstance(option, Override) and option.own)

    def set(self, target: str, value: Any, origin: str, own: bool = False) -> None:
        """Put `value` at the dotted path `target`; `origin` names the option that said so.  own: the recipe did."""
        parts = target.split(".")
        container = self.data
        walked: Path = ()
        for depth, part in enumerate(parts):
            key = self._key(container, part, walked, origin)
            if key is None:
                return
            walked = (*walked, key)
            if depth == len(parts) - 1:
                container[key] = value
                # What the file and earlier options said below this place no longer counts.
                self._lines = {p: n for p, n in self._lines.items() if p[: len(walked)] != walked}
                self._overridden = {p: o for p, o in self._overridden.items() if p[: len(walked)] != walked}
                self._overridden[walked] = origin
                self._own.discard(walked)
                if own:
                    self._own.add(walked)
            else:
                if isinstance(container, dict) and container.get(key) is None:
                    container[key] = {}
                    self._overridden[walked] = origin  # what it has no place for, the option said and not the file
                container = container[key]

    def from_option(self, path: Path) -> bool:
        """Whether the value at `path` comes from an option of the command line, and not from the recipe."""
        said = next((p for p in _upwards(path) if p in self._overridden), None)
        return said is not None and said not in self._own

    def _key(self, container: Any, part: str, walked: Path, origin: str) -> str | int | None:
        """`part` as a key of `container`, or None with a problem noted."""
        if isinstance(container, dict):
            return part
        where = dotted(walked) or "the recipe"
        if not isinstance(container, list):
            message = f"{where} is a single value; it has no {part!r}"
        elif not part.isdecimal():
            message = f"{where} is a list: {part!r} is not an index"
        elif int(part) >= len(container):
            message = f"{where} has {len(container)} entries; there is no number {part}"
        else:
            return int(part)
        last = len(container) - 1 if isinstance(container, list) else -1
        hint = f"indices count from 0: {where}.0 to {where}.{last}" if last >= 0 else ""
        self.problems.append(Problem(origin, None, dotted((*walked, part)), message, hint))
        return None

    def problem(self, path: Path, message: str, hint: str = "") -> None:
        """Note a problem at `path`: at the option that set it, else at the nearest line of the file."""
        for here in _upwards(path):
            origin = self._overridden.get(here)
            if origin is not None:
                self.problems.append(Problem(origin, None, dotted(path), message, hint))
                return
            if here in self._lines:
                line = self._lines[here]
                self.problems.append(Problem(self.file, line, dotted(path), message, hint))
                return

    def ordered(self) -> list[Problem]:
        """The problems in the order of the file; those of overrides, which have no line, come last."""
        return sorted(self.problems, key=lambda problem: (problem.line is None, problem.line or 0))


_INDENT = "give the keys of one mapping the same number of spaces, and so the dashes of one list"
_CLOSE = "close what was opened, or put the text in quotes"
# What the parser says, what is meant by it, what to do.
_EXPLANATIONS = (
    ("character '\\t'", "a tab where a value begins", "indent by spaces"),
    ("expected <block end>", "this line is indented otherwise than those it belongs to", _INDENT),
    ("<document start>", "this line is indented otherwise than those it belongs to", _INDENT),
    ("mapping values are not allowed", "no `key: value` can be here",
     f"{_INDENT}; a line has one `: `, and the line before this one may lack its own"),
    ("could not find expected ':'", "the line before this one is a key without `: ` and a value", "write KEY: VALUE"),
    ("expected ',' or", "a bracket that is not closed", _CLOSE),
    ("unexpected end of stream", "a quote that is not closed", _CLOSE),
)  # fmt: skip


def _explained(error: MarkedYAMLError) -> tuple[str, str]:
    """What is wrong and what to do; the parser's own words where there are no better ones."""
    said = " ".join(part for part in (error.context, error.problem) if part)
    return next(((what, do) for part, what, do in _EXPLANATIONS if part in said), (said, ""))


def _upwards(path: Path) -> list[Path]:
    """The path, the one above it, and so on to the top."""
    return [path[:length] for length in range(len(path), -1, -1)]


def _cut(written: str) -> str:
    return ascii(written if len(written) <= 60 else f"{written[:57]}...")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["?"])[0]

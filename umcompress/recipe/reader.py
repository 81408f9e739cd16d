"""From YAML data to validated documents, with every problem noted at its line. See `recipe.parse_recipe`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path as Folder
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from umcompress.documents.base import Document
from umcompress.documents.places import Kind
from umcompress.documents.schema import field_names, field_text, model_at
from umcompress.errors import UmcompressError, did_you_mean, nearest
from umcompress.recipe.places import only_here, seen_from, seen_from_here, with_places
from umcompress.recipe.yaml_lines import Path, YamlText, dotted

AnyDocument = TypeVar("AnyDocument", bound=Document)
Resolver = Callable[[str], type[Document]]
_STEP_KEYS = ("pass", "name", "after", "stop_if")
_STEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Reader:
    """Reads the parts of one recipe. Nothing raises for a bad recipe: problems gather in the source."""

    def __init__(
        self, source: YamlText, head: type[Document], gate: type[Document], text: str = "", folder: Folder | None = None
    ) -> None:
        """text, folder: of the recipe; without a folder its paths are seen from the current one."""
        self.source = source
        self._text, self._folder = text, folder
        self._head = head
        self._gate = gate
        self._data: dict[str, Any] = source.data if isinstance(source.data, dict) else {}
        if source.data is None:
            source.problem((), "the recipe is empty", "it needs at least `model:` and `steps:`")
        elif not isinstance(source.data, dict):
            source.problem((), f"a recipe is a mapping of keys, found {shown(source.data)}")
        self.readable = isinstance(source.data, dict)
        self._calibration: Document | None = None
        self._model: str | None = None

    def head(self, models: Callable[[str], object] | None) -> Document | None:
        """The keys of the top level other than `steps` and `evaluate`."""
        if not self.readable:
            return None
        rest = {key: value for key, value in self._data.items() if key not in ("steps", "evaluate")}
        rest = self._seen(self._head, rest, ())
        head = self.validate(self._head, rest, (), extra_keys=("steps", "evaluate"))
        self._calibration = getattr(head, "calibration", None)
        name = rest.get("model")
        self._model = name if isinstance(name, str) and name else None
        if models is not None and self._model is not None:
            try:
                models(self._model)
            except UmcompressError as error:
                self._model = None
                self._refused(("model",), error)
        return head

    def export_layout(self, layouts: Callable[[str], Sequence[str]]) -> None:
        """`export` names a layout that the model can be written in."""
        export = self._data.get("export")
        layout = export.get("to") if isinstance(export, dict) else None
        if self._model is None or not isinstance(layout, str) or not layout:
            return
        try:
            known = layouts(self._model)
        except UmcompressError as error:
            self._refused(("model",), error)
            return
        if layout not in known:
            message = f"{self._model} cannot be written as {shown(layout)}"
            self.source.problem(("export", "to"), message, did_you_mean(layout, known) or "leave `export` out")

    def evaluations(self, resolve: Resolver) -> list[tuple[str, Document]]:
        """`evaluate`: a list whose entries are a name, or a name with its options."""
        entries = self._data.get("evaluate")
        if entries is None:
            return []
        if not isinstance(entries, list):
            message = f"should be a list, found {shown(entries)}"
            self.source.problem(("evaluate",), message, "write `evaluate: [scenes]`")
            return []
        found: list[tuple[str, Document]] = []
        for index, entry in enumerate(entries):
            read = self._evaluation(("evaluate", index), entry, resolve)
            if read is not None and any(read[0] == name for name, _ in found):
                self.source.problem(("evaluate", index), f"{read[0]!r} is named twice")
            elif read is not None:
                found.append(read)
        return found

    def _evaluation(self, path: Path, entry: Any, resolve: Resolver) -> tuple[str, Document] | None:
        if isinstance(entry, dict) and len(entry) == 1:
            (name, options), below = next(iter(entry.items())), (*path, next(iter(entry)))
        elif isinstance(entry, str):
            name, options, below = entry, None, path
        else:
            hint = "write `- scenes`, or `- scenes: {limit: 100}`"
            message = f"should be a name, or one name with its options; found {shown(entry)}"
            self.source.problem(path, message, hint)
            return None
        name = self._code(name, below)
        cls = self._resolve(resolve, name, below)
        if cls is None:
            return None
        document = self.validate(cls, {} if options is None else self._seen(cls, options, below), below)
        return None if document is None else (name, document)

    def calibration_sources(self, resolve: Resolver) -> None:
        """`calibration.source`, of the recipe and of its steps, names an evaluation."""
        steps = self._data.get("steps")
        places: list[tuple[Path, Any]] = [((), self._data)]
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            places.append((("steps", index), step))
        for path, holder in places:
            calibration = holder.get("calibration") if isinstance(holder, dict) else None
            source = calibration.get("source") if isinstance(calibration, dict) else None
            if isinstance(source, str):
                place = (*path, "calibration", "source")
                self._resolve(resolve, self._code(source, place), place)

    def steps(self, resolve: Resolver) -> list[dict[str, Any]]:
        """`steps`: keyword arguments of `recipe.Step`, one for each step that is right."""
        if not self.readable:
            return []
        entries = self._data.get("steps")
        if not isinstance(entries, list) or not entries:
            what = "is missing" if "steps" not in self._data else f"is {shown(entries)}"
            hint = "a list of passes, each `- pass: NAME` with its options"
            self.source.problem(("steps",), f"{what}; a recipe needs at least one step", hint)
            return []
        read = (self._step(("steps", index), entry, resolve) for index, entry in enumerate(entries))
        # Those that are wrong too: others may come after them.
        steps = [step for step in read if step is not None]
        self._names_differ(steps)
        self._come_after(steps)
        self._is_written(steps)
        sound = (step for step in steps if step["pass"] is not None)
        return [{key: value for key, value in step.items() if key not in ("path", "known")} for step in sound]

    def _step(self, path: Path, entry: Any, resolve: Resolver) -> dict[str, Any] | None:
        """Keyword arguments of `recipe.Step` and the step's path; of one with problems, `pass` is None."""
        if not isinstance(entry, dict):
            self.source.problem(path, f"a step is a mapping, found {shown(entry)}", "write `- pass: NAME`")
            return None
        before = len(self.source.problems)
        reference = entry.get("pass")
        cls: type[Document] | None = None
        if isinstance(reference, str) and reference:
            reference = self._code(reference, (*path, "pass"))
            cls = self._resolve(resolve, reference, (*path, "pass"))
        elif "pass" in entry:
            self.source.problem((*path, "pass"), f"should be the name of a pass, found {shown(reference)}")
        else:
            close = nearest("pass", entry)
            hint = f"is {close!r} meant to be 'pass'?" if close else "write `- pass: NAME`"
            self.source.problem(path, "the step names no pass", hint)
        gate = self._gate_of(path, entry)
        options = self._options(entry, cls, path)
        document = None if cls is None else self.validate(cls, options, path, extra_keys=_STEP_KEYS)
        name = self._step_name(path, entry, getattr(cls, "name", None))
        if len(self.source.problems) > before:
            document = None
        found = {"name": name, "reference": reference, "pass": document, "stop_if": gate, "path": path}
        return found | {"after": entry.get("after"), "known": cls is not None or "name" in entry}

    def _options(self, entry: dict[str, Any], cls: type[Document] | None, path: Path) -> dict[str, Any]:
        """The pass's own keys. What a step's `calibration` leaves out comes from the recipe's."""
        options = {key: value for key, value in entry.items() if key not in _STEP_KEYS}
        options = options if cls is None else self._seen(cls, options, path)
        own, common = options.get("calibration"), self._calibration
        if cls is None or common is None or not isinstance(own, dict):
            return options
        if model_at(cls, ("calibration",)) is not type(common):
            return options
        inherited = common.json_values()
        if own.keys() & {"source", "data"}:
            # An origin of its own takes the place of the recipe's, of whichever kind that is.
            inherited = {key: value for key, value in inherited.items() if key not in ("source", "data")}
        return options | {"calibration": inherited | own}

    def _gate_of(self, path: Path, entry: dict[str, Any]) -> Document | None:
        if entry.get("stop_if") is None:
            return None
        here = (*path, "stop_if")
        gate = self.validate(self._gate, entry["stop_if"], here)
        # An evaluation with a problem of its own is one all the same.
        if not self._data.get("evaluate"):
            message = "needs a score, but the recipe evaluates nothing"
            self.source.problem(here, message, "add `evaluate: [scenes]`")
        elif gate is not None and all(value is None for value in gate.json_values().values()):
            self.source.problem(here, "limits nothing", f"allowed: {', '.join(field_names(self._gate))}")
        return gate

    def _step_name(self, path: Path, entry: dict[str, Any], pass_name: str | None) -> str:
        name = entry.get("name")
        if name is None:
            return f"{int(path[-1]) + 1:02d}-{pass_name or 'pass'}"
        if not isinstance(name, str) or not _STEP_NAME.fullmatch(name) or name == "baseline":
            hint = "letters, digits, '.', '_' and '-'; `baseline` is taken"
            self.source.problem((*path, "name"), f"not a name for a step: {shown(name)}", hint)
        return str(name)

    def _names_differ(self, steps: list[dict[str, Any]]) -> None:
        seen: dict[str, Path] = {}
        for step in steps:
            first = seen.setdefault(step["name"], step["path"])
            if first is not step["path"]:
                message = f"{step['name']!r} names step {first[1]} already"
                self.source.problem((*step["path"], "name"), message)

    def _come_after(self, steps: list[dict[str, Any]]) -> None:
        """`after` names the baseline or an earlier step."""
        earlier, unknown = ["baseline"], list[str]()
        for step in steps:
            after = step["after"]
            # What a step is called by its pass is not known where the pass is not.
            if after is not None and after not in earlier and not str(after).startswith(tuple(unknown)):
                message = f"should name the baseline or an earlier step, found {shown(after)}"
                self.source.problem((*step["path"], "after"), message, did_you_mean(str(after), earlier))
            if step["known"]:
                earlier.append(step["name"])
            else:
                unknown.append(f"{int(step['path'][-1]) + 1:02d}-")

    def _is_written(self, steps: list[dict[str, Any]]) -> None:
        """`write` names a step."""
        name, names = self._data.get("write"), [step["name"] for step in steps if step["known"]]
        if isinstance(name, str) and name not in names and all(step["known"] for step in steps):
            self.source.problem(("write",), f"should name a step, found {shown(name)}", did_you_mean(name, names))

    def _seen(self, cls: type[Document], values: Any, path: Path) -> Any:
        """The values of a document with every path as it is seen from the current folder."""
        if not isinstance(values, dict):
            return values

        def seen(name: str, kind: Kind, at: Path) -> str:
            if self.source.from_option((*path, *at)):
                return name
            if (wrong := only_here(name, kind, self._folder, self._text)) is not None:
                option = f"-o {name}" if kind == "output" else f"--set {dotted((*path, *at))}={name}"
                self.source.problem((*path, *at), wrong[0], f"write {wrong[1]}, or give {option}")
                return name
            return seen_from_here(name, kind, self._folder)

        return with_places(cls, values, seen)

    def _code(self, name: str, path: Path) -> str:
        """A pass or an evaluation as the recipe names it: code in a file that an option names, from its folder."""
        if self._folder is None or not self.source.from_option(path):
            return name
        return seen_from(name, "code", self._folder)

    def _resolve(self, resolve: Resolver, name: str, path: Path) -> type[Document] | None:
        try:
            return resolve(name)
        except UmcompressError as error:
            self._refused(path, error)
        except ValueError as error:
            message, _, hint = str(error).partition("; ")
            self.source.problem(path, message, hint)
        return None

    def _refused(self, path: Path, error: UmcompressError) -> None:
        message = f"{error.asked}; found {error.found}" if error.found else error.asked
        self.source.problem(path, message, error.do)

    def validate(
        self, cls: type[AnyDocument], data: Any, path: Path, extra_keys: tuple[str, ...] = ()
    ) -> AnyDocument | None:
        """`data` as a `cls`, or None with its problems noted below `path`.

        It is validated as JSON in strict mode: there a list may become a tuple, but "64" is not 64.
        """
        if not isinstance(data, dict):
            message = f"should be a mapping, found {shown(data)}"
            self.source.problem(path, message, f"with the keys {', '.join(field_names(cls))}")
            return None
        try:
            return cls.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for where, details in self._grouped(error.errors(include_url=False), data):
                self._explain(cls, path, where, details, extra_keys)
            return None

    def _grouped(self, errors: list[ErrorDetails], data: Any) -> list[tuple[Path, list[ErrorDetails]]]:
        """Group validation errors by their place in the data: a union gives one for each member."""
        groups: dict[Path, list[ErrorDetails]] = {}
        for error in errors:
            where: Path = ()
            here = data
            loc = error["loc"]
            for depth, part in enumerate(loc):
                wanted = depth == len(loc) - 1 and error["type"] in ("missing", "extra_forbidden")
                if isinstance(here, dict) and part in here:
                    here = here[str(part)]
                elif isinstance(here, list) and isinstance(part, int) and part < len(here):
                    here = here[part]
                elif not wanted:
                    continue
                where = (*where, part)
            groups.setdefault(where, []).append(error)
        # A union whose members looked into the value gives errors below it too; the one above says it all.
        outer = {
            path: next((p for p in groups if len(p) < len(path) and path[: len(p)] == p), path)
            for path in groups
        }
        merged: dict[Path, list[ErrorDetails]] = {}
        for path, found in groups.items():
            merged.setdefault(outer[path], []).extend(found)
        return list(merged.items())

    def _explain(
        self,
        cls: type[Document],
        base: Path,
        where: Path,
        details: list[ErrorDetails],
        extra: tuple[str, ...],
    ) -> None:
        error, path = details[0], (*base, *where)
        owner = model_at(cls, where[:-1]) if where else cls
        allowed = field_text(owner, str(where[-1])) if owner is not None and where else ""
        if error["type"] == "extra_forbidden":
            names = field_names(owner) if owner is not None else []
            names += [] if len(where) > 1 else list(extra)
            self.source.problem(path, "unknown key", did_you_mean(str(where[-1]), names))
        elif error["type"] == "missing":
            self.source.problem(path, "is missing", f"allowed: {allowed}" if allowed else "")
        elif error["type"] == "value_error":
            # A validator's own sentence: it knows best, and may speak of several keys.
            self.source.problem(path, error["msg"].removeprefix("Value error, "))
        else:
            message = error["msg"].removeprefix("Input ")
            message = f"{message[:1].lower()}{message[1:]}" if len(details) == 1 else "is not allowed"
            hint = f"allowed: {allowed}" if allowed else ""
            expected = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
            close = nearest(str(error["input"]), expected)
            hint = f"did you mean {close!r}? {hint}".strip() if close else hint
            self.source.problem(path, f"{message}; found {shown(error['input'])}", hint)


def shown(value: Any) -> str:
    """A value as text in an error message, cut to one line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

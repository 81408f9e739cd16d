"""Rows of results in a file that is appended to: a resumed run computes only what is missing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from umcompress.extend import UsageError, files, processes, write_text_atomic

Row = dict[str, Any]
# Beside NAME.jsonl: how long each run was at it.
SECONDS = ".seconds.jsonl"


class ResumableLines:
    """The rows of a JSON-lines file by their key; a row is on disk before the next one is computed.

    settings: what the rows depend on besides their key (the model, the prompts).  Rows of other settings are
    set aside as `NAME.old`, never mixed in.  Each process of several appends to a file of its own;
    `finish` makes one file of them, in the order of the items.  A line cut short by a kill is dropped.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, key: str = "id") -> None:
        self.path, self.key = path, key
        self.set_aside = False
        self._own = path if processes.rank() == 0 else self._of(processes.rank())
        self._began, self._started = time.time(), time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        found: list[Row] = []
        if processes.rank() == 0:
            self._claim(dict(settings or {}))
            found = self._fold()
        self.rows: dict[str, Row] = {row[key]: row for row in processes.from_first(found)}

    def _of(self, rank: int | str) -> Path:
        return self.path.with_name(f"{self.path.stem}.process{rank}{self.path.suffix}")

    def _parts(self) -> list[Path]:
        found = [self.path, *sorted(self.path.parent.glob(self._of("*").name))]
        return [path for path in found if path.is_file()]

    def _claim(self, settings: Row) -> None:
        mark = self.path.with_name(f"{self.path.stem}.settings.json")
        wanted = json.dumps(settings, sort_keys=True, indent=1, default=str) + "\n"
        if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
            return
        for part in self._parts():
            part.replace(part.with_name(f"{part.name}.old"))
            self.set_aside = True
        self._seconds_file().unlink(missing_ok=True)
        mark.write_text(wanted, encoding="utf-8")

    def _fold(self) -> list[Row]:
        """All rows so far; what a killed run of several processes left is put into the one file."""
        parts = self._parts()
        rows = [row for part in parts for row in read_rows(part)]
        if len(parts) > 1 or (parts and not parts[0].read_bytes().endswith(b"\n")):
            self._rewrite(rows)
        return rows

    def _rewrite(self, rows: Iterable[Row]) -> None:
        write_text_atomic(self.path, "".join(_line(row) for row in rows), sync=False)
        for part in self._parts()[1:]:
            part.unlink(missing_ok=True)

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> Row:
        return self.rows[key]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, *rows: Row) -> None:
        """Write rows and see them onto the disk.  A key that is there already keeps its first row."""
        new = [row for row in rows if row[self.key] not in self.rows]
        with files.naming(self._own), self._own.open("a", encoding="utf-8") as file:
            file.write("".join(_line(row) for row in new))
            file.flush()
        self.rows |= {row[self.key]: row for row in new}
        if processes.rank() == 0:
            self._keep_seconds()

    def _seconds_file(self) -> Path:
        return self.path.with_name(f"{self.path.stem}{SECONDS}")

    def _keep_seconds(self) -> None:
        """A killed run leaves the seconds that its rows took."""
        file = self._seconds_file()
        others = [row for row in read_rows(file) if row["began"] != self._began] if file.is_file() else []
        mine = {"began": self._began, "seconds": round(time.monotonic() - self._started, 3)}
        write_text_atomic(file, "".join(_line(row) for row in [*others, mine]), sync=False)

    def finish(self, keys: Sequence[str]) -> list[Row]:
        """The rows of `keys` in that order, those of all processes; afterwards the file is in that order too."""
        everyone = processes.gather(self.rows)
        self.rows = {key: row for rows in everyone for key, row in rows.items()}
        found = [self.rows[key] for key in keys]
        wanted = set(keys)
        if processes.rank() == 0:
            self._rewrite([*found, *(row for key, row in self.rows.items() if key not in wanted)])
        elif self._own.is_file():
            self._own.unlink(missing_ok=True)
        return found


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def earlier_seconds(folder: Path, began: float) -> float:
    """What runs that began before `began` (time.time) spent on the rows of the files in `folder`."""
    rows = [row for file in sorted(folder.glob(f"*{SECONDS}")) for row in read_rows(file)]
    return float(sum(row["seconds"] for row in rows if row["began"] < began))


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; a last line without its end is left out.  UsageError for other damage."""
    text = files.read_bytes(path).decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows = []
    for number, line in enumerate(whole.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = files.parse_json(line)
        except ValueError as error:
            raise UsageError(f"the rows of {path}", f"line {number} is not JSON: {error}",
                             "mend the line, or remove the file to start anew") from error
        rows.append(row)
    return rows

"""Prompts from a file of the user's: one a line, or JSON with a `prompt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umcompress.extend import UsageError, files, lines_of, text_of


def read_prompts(path: Path, asked: str) -> list[str]:
    """The prompts of a text file (a line each), of JSON lines or of a JSON list.  UsageError."""
    try:
        text = text_of(path)
        if path.suffix == ".json":
            rows = files.parse_json(text)
        elif path.suffix == ".jsonl":
            rows = [files.parse_json(line) for line in lines_of(text) if line.strip()]
        else:
            rows = [line.strip() for line in lines_of(text) if line.strip()]
    except (OSError, ValueError) as error:
        do = "name a text file with a prompt a line, or JSON lines with `prompt`"
        raise UsageError(f"{asked} {path}", f"not readable: {error}", do) from error
    prompts = [_prompt(row, f"{asked} {path}") for row in rows] if isinstance(rows, list) else []
    if not prompts:
        raise UsageError(f"{asked} {path}", "no prompts", "name a text file with a prompt a line")
    return prompts


def _prompt(row: Any, asked: str) -> str:
    found = row
    if isinstance(row, dict):
        found = next((row[key] for key in ("prompt", "Prompt", "caption", "text") if key in row), None)
    if not isinstance(found, str) or not found.strip():
        raise UsageError(asked, f"no prompt in {str(row)[:80]}", "each row is a text, or has `prompt`")
    return found.strip()

"""docs/architectures.md, from what the sweep found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "docs" / "architectures.md"
TITLES = {
    "causal_lm": "Language models (AutoModelForCausalLM)",
    "image_text_to_text": "Models that read pictures (AutoModelForImageTextToText): their language part",
}
HEAD = """# Every architecture of transformers

Written by `python benchmarks/every_architecture.py --write` on transformers {version}: for each model type of
its auto classes a small random model of the default configuration, saved by transformers, goes through what a user
does. It is opened, inspected and traced; a block is dropped (`layer_drop`), half of the feed-forward channels
(`channel_prune`) and half of the key-value groups (`head_prune`) are cut. A row holds where

* the traced model computes the same bits as transformers' own;
* each cut gives what a model gives whose block hands on what it was given, or whose weights are zero there, to 1e-4;
* where decoding with a cache is exact before, it is so after;
* the saved result loads to the same bits: by transformers alone where it is plain, and where it is not, transformers
  refuses it and `umcompress.load` loads it.

[support.md](support.md) has the architectures that are tested in depth, with calibration, experts and training.

Columns: blocks of the pico model; heads as query heads / groups; channels of how many blocks; after which cuts
transformers alone loads the result. "-": no such site, and the remark says why. Architectures that mix attention with
state-space or convolution layers have heads in their attention layers only; whole blocks can go in any.
"""
# What else there is to know about a task.
NOTES = {
    "image_text_to_text": """The cuts are made in the language part. Compared are texts, what the tower sees in a
picture and, for the kinds that [vision-language.md](vision-language.md) asks in batches, an answer about one; models
that do not go without a picture get it with the text. Not built: what needs timm where that is not installed. Refused,
and the tool says why: what wants more than text and a picture, and an encoder and a decoder that are one.
""",
}
_WHY = re.compile(r"found: (.*?)(?: do: .*)?$")


def write(rows: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """All tables, counted."""
    import transformers

    parts = [HEAD.format(version=transformers.__version__)]
    for task, found in rows.items():
        if not found:
            continue
        held = [row for row in found if row["verdict"] == "works" and row.get("cuts")]
        rest = Counter(_state(row) for row in found if row not in held)
        counted = "".join(f", {count} {state}" for state, count in sorted(rest.items()))
        parts.append(f"\n## {TITLES[task]}\n\n{len(held)} of {len(found)} can be compressed{counted}.\n")
        parts += [NOTES[task]] if task in NOTES else []
        parts.append("| model type | blocks | heads | channels | plain after a cut of | remark |")
        parts.append("|---|---|---|---|---|---|")
        parts += [_line(row) for row in sorted(held, key=lambda row: row["kind"])]
        others = sorted((row for row in found if row not in held), key=lambda row: (_state(row), row["kind"]))
        if others:
            parts.append("\n| model type | not in the table because |\n|---|---|")
            parts += [f"| {row['kind']} | {_state(row)}: {_short(_error(row), 240)} |" for row in others]
    DOCUMENT.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _state(row: dict[str, Any]) -> str:
    if row["verdict"] == "works":
        return "without a site"
    return {"not built": "not built here", "refused": "refused"}.get(row["verdict"], "not working")


def _error(row: dict[str, Any]) -> str:
    return row.get("error") or "; ".join(row.get("wrong") or row.get("missing") or ["?"])


def _line(row: dict[str, Any]) -> str:
    cuts = row["cuts"]
    plain = [title for title in ("blocks", "channels", "heads") if cuts.get(title) == "plain"]
    count, blocks = row["feed_forwards"], str(row["stacks"]["main"])
    channels = f"{count} of {blocks}, {'/'.join(row['channels'])}" if row["channels"] else "-"
    remarks = [f"{title} not plain: {_short(reason)}" for title, reason in cuts.items() if reason != "plain"]
    remarks += [_missing(text) for text in row.get("missing", ())]
    more = len(row["stacks"]) - 1
    blocks += f" + {more} other stack{'s' if more > 1 else ''}" if more else ""
    cells = [row["kind"], blocks, ", ".join(row["heads"]) or "-", channels, ", ".join(plain) or "nothing"]
    return f"| {' | '.join(cells)} | {'; '.join(remarks)} |"


def _missing(text: str) -> str:
    """`heads: head_prune: ... found: WHY do: ...` -> `heads: WHY`."""
    title, _, rest = text.partition(": ")
    why = match.group(1) if (match := _WHY.search(rest)) else rest
    # One reason a kind of layer is enough; which layers they are `inspect` says.
    reasons = dict.fromkeys(re.sub(r"^\S+( and \d+ more)?: ", "", part) for part in why.split("; "))
    return f"blocks stay: {_short(why, 200)}" if title == "blocks" else f"no {title}: {_short('; '.join(reasons), 200)}"


def _short(text: str, most: int = 110) -> str:
    """Without paths of this machine, and without bars."""
    text = re.sub(r"/\S*/transformers/", "transformers/", " ".join(text.split())).replace("|", "/")
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} ..."

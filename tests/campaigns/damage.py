"""Damage to a file, drawn at random: cut, emptied, bits turned, values of JSON made odd, another thing in its place."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 7, 10**6, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd", "\0",
    "é" * 300, [], [[]], {}, {"a": None}, [1, 2, 3], ["model.safetensors"], "bfloat16", "flash_attention_2",
    "LlamaForCausalLM",
)  # fmt: skip


def cut(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content) + 1)])


def turned(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice((1, 3, 30))):
        if content:
            content[draw.randrange(len(content))] = draw.randrange(256)
    file.write_bytes(content)


def another_encoding(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes().decode("latin-1").encode(draw.choice(("utf-16", "utf-32", "utf-8"))))


def gone(file: Path, draw: random.Random) -> None:
    file.unlink()


def other_thing(file: Path, draw: random.Random) -> None:
    file.unlink()
    kind = draw.randrange(4)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to("nowhere")
    else:
        file.symlink_to("/dev/zero")


def odd_value(value: Any, draw: random.Random) -> Any:
    """JSON with one of its values, anywhere in it, made odd, doubled or left out."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.15:
            return {other: part for other, part in value.items() if other != key}
        return value | {key: odd_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] + value[place:] * 2
        return [*value[:place], odd_value(value[place], draw), *value[place + 1 :]]
    if isinstance(value, int | float) and draw.random() < 0.4:
        return draw.choice((-value, value + 1, value * 2, value * 1000, value / 3, str(value)))
    return draw.choice(ODD)


def odd_json(file: Path, draw: random.Random) -> None:
    file.write_text(json.dumps(odd_value(json.loads(file.read_text(encoding="utf-8")), draw)), encoding="utf-8")


def odd_header(file: Path, draw: random.Random) -> None:
    """Of a safetensors file: its header as JSON made odd, its length right or not."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(odd_value(json.loads(content[8 : 8 + length]), draw)).encode()
    told = len(header) if draw.random() < 0.9 else draw.choice((0, 1, 2**40, 2**64 - 1, len(header) + 1))
    file.write_bytes(struct.pack("<Q", told) + header + content[8 + length :])


Damage = Callable[[Path, random.Random], None]


def damages_of(file: Path) -> list[Damage]:
    """What can be done to a file; likelier things several times."""
    found: list[Damage] = [cut, turned, turned, another_encoding, gone, other_thing]
    if file.suffix == ".json":
        found += [odd_json] * 12
    if file.suffix == ".safetensors":
        found += [odd_header] * 12
    return found


def damaged(folder: Path, draw: random.Random) -> str:
    """Damage one or two files of a folder; says what was done."""
    done = []
    for _ in range(draw.choice((1, 1, 2))):
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        if not files:
            break
        file = draw.choice(files)
        damage = draw.choice(damages_of(file))
        try:
            damage(file, draw)
        except (ValueError, struct.error, UnicodeError):  # damaged before: it is no JSON any more
            continue
        done.append(f"{damage.__name__} {file.relative_to(folder)}")
    return ", ".join(done)


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))

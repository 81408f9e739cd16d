"""Files that a user names: what is no regular file, too large or nested too deeply is refused in words."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest

from umcompress.documents import files
from umcompress.errors import UsageError
from umcompress.models.pictures import open_picture


@pytest.mark.parametrize("name", ["/dev/zero", "a\0b", "x" * 300, "fifo", "folder", "missing"])
def test_what_is_no_regular_file_is_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.read_bytes(tmp_path / name)
    assert not files.is_regular(tmp_path / name)


def test_a_file_larger_than_is_dealt_with_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("four")
    assert files.read_bytes(tmp_path / "a", most=4) == b"four"
    with pytest.raises(OSError, match="4 bytes; up to 3"):
        files.read_bytes(tmp_path / "a", most=3)


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, '{"a":' * 200 + "1" + "}" * 200, "[" * 100_000])
def test_json_that_is_nested_deeply_is_no_value(text: str) -> None:
    with pytest.raises(ValueError, match="brackets inside each other"):
        files.parse_json(text)


def test_brackets_beside_each_other_and_in_texts_are_not_nested() -> None:
    assert files.parse_json('["' + "[{" * 200 + '\\"["]') == ["[{" * 200 + '"[']
    assert files.parse_json("[" + ",".join(["[1]"] * 300) + "]") == [[1]] * 300


def test_lines_end_where_a_new_line_begins(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\r\ntwo\n")
    assert files.read_text(tmp_path / "a") == "one\ntwo\n"


@pytest.mark.parametrize("name", ["../a", "/a", "", "a\0b", 3, None])
def test_a_document_names_files_of_its_own_folder(tmp_path: Path, name: object) -> None:
    assert files.within(tmp_path, "b/c") == tmp_path / "b" / "c"
    with pytest.raises(ValueError, match="no name of a file"):
        files.within(tmp_path, name)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (head, *chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize(
    "picture",
    [
        png(30_000, 30_000), png(12_000, 12_000), png(2, 2), b"no picture",
        png(2, 2, (b"zTXt", b"note\0\0" + zlib.compress(b"x" * 2**21)), (b"IDAT", zlib.compress(bytes(14)))),
    ],
    ids=["a bomb", "a smaller bomb", "empty", "text", "an oversized text"],
)  # fmt: skip
def test_a_hostile_picture_is_refused_in_words(picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    for source in (picture, tmp_path / "a.png"):
        with pytest.raises(UsageError, match="the picture of a test\n  found: not readable as a picture"):
            open_picture(source, "the picture of a test")


def test_a_picture_is_decoded() -> None:
    picture = open_picture(png(2, 2, (b"IDAT", zlib.compress(bytes(14)))), "the picture of a test")
    assert picture.size == (2, 2)
    with pytest.raises(UsageError, match="no regular file"):
        open_picture(Path("/dev/zero"), "the picture of a test")

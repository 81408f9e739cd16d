"""Two processes paint and judge the pictures of one evaluation: the same files and the same score as by one."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from forked_command import Command
from tiny_bagel import write_tiny_bagel
from tiny_judges import PERSON, UMBRELLA, metadata, write_tiny_clip, write_tiny_mask2former

from umcompress.cli import main as cli
from umcompress.models.bagel.runner import LARGEST_BATCH


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(arguments: list[str], count: int) -> list[str]:
    """What torchrun and `accelerate launch -m umcompress` do, without their own start-up; the standard outputs."""
    shared = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    started = [Command(*arguments, environment=rank) for rank in ranks]
    done = [one.wait() for one in started]
    assert [one.returncode for one in done] == [0] * count, "\n".join(one.stderr for one in done)
    return [one.stdout for one in done]


def files(folder: Path) -> dict[str, bytes]:
    """All but how long it took."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".seconds.jsonl"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def scores(report: dict[str, Any]) -> list[dict[str, Any]]:
    of_all = report["steps"][0]["evaluations"].values()
    return [score | {"seconds": None} for of_one in of_all for score in of_one.values()]


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    write_tiny_bagel(tmp_path / "model")
    write_tiny_mask2former(tmp_path / "detector", finds={PERSON: 9.0, UMBRELLA: 8.8})
    write_tiny_clip(tmp_path / "clip")
    lines = "".join(json.dumps(row) + "\n" for row in metadata())
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    options = f"data={tmp_path}/data.jsonl,images=11,detector={tmp_path}/detector,classifier={tmp_path}/clip"
    arguments = ["evaluate", str(tmp_path / "model"), "--evaluation", f"geneval:{options}"]
    arguments += ["--evaluation", "scenes:prompts=140,questions=120", "-o"]
    assert cli.main([*arguments, str(tmp_path / "one")]) == 0
    first, second = launch([*arguments, str(tmp_path / "two")], 2)
    assert "geneval" in first
    assert second == "", "only the first process prints"
    one, two = (files(tmp_path / name) for name in ("one", "two"))
    assert len([name for name in one if "/samples/" in name]) == 132 > LARGEST_BATCH, "so that both have work"
    assert {"scenes/pictures.jsonl", "scenes/answers.jsonl", "scenes/samples.png"} < set(one)
    assert one | {"report.json": b""} == two | {"report.json": b""}
    reports = [json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert len(scores(reports[0])) == 3
    assert scores(reports[0]) == scores(reports[1])

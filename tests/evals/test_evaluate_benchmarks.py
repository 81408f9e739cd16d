"""`umcompress evaluate` and `apply` with the question benchmarks, end to end on real models."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import benchmark_data as data
import pytest
from forked_command import Command
from run_fakes import depends_on
from tiny_bagel import write_recipe

from umcompress.cli.main import main
from umcompress.evals.answers.mmvet import MmVet
from umcompress.models.bagel.runner import BagelRunner
from umcompress.run.folder import RunFolder

ITEMS = {"mme": 28, "mmbench": 9, "pope": 12, "mmvp": 4, "mmmu": 32}
WHOLE = {"mme": 2374, "mmbench": 4377, "pope": 8910, "mmvp": 300, "mmmu": 900}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("benchmarks")
    return {
        "mme": data.write_mme(root / "mme", images=1),
        "mmbench": data.write_mmbench(root / "mmbench" / "mmbench_dev_20230712.tsv").parent,
        "pope": data.write_pope(root / "pope"), "mmvp": data.write_mmvp(root / "mmvp"),
        "mmmu": data.write_mmmu(root / "mmmu"), "mmvet": data.write_mmvet(root / "mmvet"),
    }  # fmt: skip


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--format", "json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def mean_of_items(score: dict[str, Any]) -> float:
    """The mean over kinds of the mean of their items."""
    rest, means = list(score["items"]), []
    for size in score["item_groups"] or [len(rest)]:
        means.append(sum(rest[:size]) / size)
        del rest[:size]
    assert rest == []
    return float(sum(means) / len(means))


@pytest.mark.parametrize("name", ["bagel-mini", "tiny"])
def test_every_benchmark_end_to_end(
    name: str, folders: dict[str, Path], tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = str(tiny_bagel) if name == "tiny" else name
    monkeypatch.setattr(MmVet, "new_tokens", 12)
    named = [part for key, folder in folders.items() for part in ("--evaluation", f"{key}:data={folder}")]
    report = evaluated(capsys, model, *named, "-o", tmp_path)
    scores = report["steps"][0]["evaluations"]
    assert scores.pop("mmvet") == {}
    assert {key: part["understanding"]["partial"] for key, part in scores.items()} == {
        key: f"{count} of {WHOLE[key]}" for key, count in ITEMS.items()
    }
    assert report["steps"][0]["scores"]["understanding"] == scores["mme"]["understanding"]
    for key, part in scores.items():
        score = part["understanding"]
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1 and score["numbers"]
        assert mean_of_items(score) == pytest.approx(score["value"]) and score["items_of"]
        rows = [json.loads(line) for line in (tmp_path / key / "answers.jsonl").read_text().splitlines()]
        assert len(rows) == ITEMS[key] and all(isinstance(row["answer"], str) for row in rows)
        assert any(row["answer"] for row in rows)
    exported = json.loads((tmp_path / "mmvet" / "mmvet.json").read_text())
    assert list(exported) == ["v1_0", "v1_1", "v1_2"]

    # Once more, with grades: every answer is there already.
    monkeypatch.setattr(BagelRunner, "answer", None)
    (tmp_path / "grades.json").write_text(json.dumps({"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.0}))
    named[-1] += f",grades={tmp_path / 'grades.json'}"
    again = evaluated(capsys, model, *named, "-o", tmp_path)["steps"][0]["evaluations"]
    assert again.pop("mmvet")["understanding"]["value"] == 0.5
    for key, part in scores.items():
        assert again[key]["understanding"] | {"seconds": 0} == part["understanding"] | {"seconds": 0}


def test_missing_data_and_wrong_options_exit_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_bagel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, parts in (
        (["mme"], ["data/mme", "about 1 GB", "BradyFU", "mme:data=PATH"]),
        (["mmmu:data=nowhere"], ["nowhere", "huggingface.co/datasets/MMMU"]),
        (["mmvet:data=x,grade=y"], ["did you mean 'grades'?"]),
    ):
        assert main(["evaluate", str(tiny_bagel), "--evaluation", *arguments]) == 2
        told = capsys.readouterr().err
        assert all(part in told for part in parts), told
        assert "Traceback" not in told


def test_a_recipe_with_a_benchmark(
    folders: dict[str, Path], tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"pass": "channel_prune", "component": "understanding", "keep_ratio": 0.5, "score": "magnitude"}
    recipe = write_recipe(
        tmp_path, tiny_bagel, step, evaluate=[{"pope": {"data": str(folders["pope"]), "limit": 6}}, {"mmvp": {
            "data": str(folders["mmvp"])}}],
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    for row in report["steps"]:
        assert row["scores"]["understanding"]["partial"] == "6 of 8910"
        assert row["evaluations"]["mmvp"]["understanding"]["numbers"]["single"]["n"] == 4
        folder = tmp_path / "run" / "steps" / ("00-baseline" if row["pass"] is None else row["name"])
        assert len((folder / "mmvp" / "answers.jsonl").read_text().splitlines()) == 4
    broken = write_recipe(tmp_path, tiny_bagel, step, evaluate=[{"pope": {"data": str(tmp_path / "none")}}])
    assert main(["apply", str(broken), "-o", str(tmp_path / "other")]) == 2
    assert "coco_pope_random.json" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_killed_step_leaves_the_answers_of_evaluations_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, depends_on("01-x"))
    work = folder.work(1, "01-x", {"mme"})
    (work / "mme").mkdir()
    (work / "mme" / "answers.jsonl").write_text("kept")
    (work / "old").mkdir()
    (work / "tensors.safetensors").write_text("gone")
    assert folder.work(1, "01-x", {"mme"}) == work
    assert {path.name for path in work.rglob("*")} == {".key", "mme", "answers.jsonl"}
    # Of a step with other options nothing is kept.
    changed = RunFolder(tmp_path, depends_on("01-x", data="another"))
    assert {path.name for path in changed.work(1, "01-x", {"mme"}).rglob("*")} == {".key"}


def test_two_processes_answer_what_one_does(folders: dict[str, Path], tiny_bagel: Path, tmp_path: Path) -> None:
    """Started as `accelerate launch` starts them: each answers a part, the first reports."""
    images = data.write_mme(tmp_path / "mme", images=3)
    arguments = [
        "evaluate", str(tiny_bagel), "--evaluation", f"mme:data={images}", "--evaluation",
        f"mmvp:data={folders['mmvp']}", "--format", "json", "-o",
    ]  # fmt: skip
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"WORLD_SIZE": "2", "RANK": rank} for rank in "01"]
    each = (("one", {}), *(("two", settings) for settings in ranks))
    started = [Command(*arguments, str(tmp_path / out), environment=common | settings) for out, settings in each]
    done = [one.wait() for one in started]
    assert [one.returncode for one in done] == [0, 0, 0], done
    outputs = [(one.stdout, one.stderr) for one in done]
    one, two = (json.loads(out)["steps"][0]["evaluations"] for out, _ in outputs[:2])
    assert outputs[2][0] == "" and "share of 2" in outputs[1][1]
    for name in ("mme", "mmvp"):
        assert one[name]["understanding"] | {"seconds": 0} == two[name]["understanding"] | {"seconds": 0}
        left, right = (tmp_path / folder / name for folder in ("one", "two"))
        for file in ("answers.jsonl", "graded.jsonl"):
            assert (left / file).read_text() == (right / file).read_text()
        kept = ["answers.jsonl", "answers.seconds.jsonl", "answers.settings.json", "graded.jsonl"]
        assert sorted(path.name for path in right.iterdir()) == kept

"""Small folders in the official formats of the benchmarks, with pictures of the scenes world."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from umcompress.evals.answers.mme_rules import TASKS
from umcompress.evals.answers.mmmu import SUBJECTS
from umcompress.evals.scenes import world


def picture(seed: int) -> Image.Image:
    """A picture that bagel-mini could have been trained on."""
    return Image.fromarray(world.render(world.sample_scene(np.random.default_rng(seed))))


def encoded(seed: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, form)
    return out.getvalue()


def write_mme(folder: Path, images: int = 2) -> Path:
    """Every task with `images` pictures; half of them in `<task>/images/`, as the release has both."""
    for number, task in enumerate(TASKS):
        place = folder / "MME_Benchmark_release_version" / task
        place = place / "images" if number % 2 else place
        place.mkdir(parents=True)
        lines = []
        for index in range(images):
            name = f"{index:04d}.jpg"
            picture(100 * number + index).save(place / name)
            for truth in ("Yes", "No"):
                lines.append(f"{name}\tIs this {truth} in {task}? Please answer yes or no.\t{truth}")
        (folder / f"{task}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


MMBENCH_COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
    "comment", "split",
)  # fmt: skip


def mmbench_rows(questions: int = 3) -> list[dict[str, str]]:
    """Questions with two to four options, each in all rotations; an option is the word None."""
    rows = []
    for number in range(questions):
        options = ["None", "a red circle", "a blue square", "NA"][: 2 + number % 3]
        image = base64.b64encode(encoded(number, "JPEG")).decode()
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            cells = dict(zip("ABCD", turned, strict=False))
            rows.append({
                "index": str(number + 10 + turn * 1_000_000), "question": f"What is shown in {number}?",
                "hint": "Look closely." if number == 1 else "", **cells, "answer": "ABCD"[turned.index(options[1])],
                "category": f"kind {number % 2}", "image": image, "source": "made", "l2-category": "all",
                "split": "dev",
            })  # fmt: skip
    return sorted(rows, key=lambda row: int(row["index"]))


def write_mmbench(path: Path, rows: list[dict[str, str]] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, MMBENCH_COLUMNS, delimiter="\t")
        table.writeheader()
        table.writerows(rows if rows is not None else mmbench_rows())
    return path


def write_pope(folder: Path, each: int = 4) -> Path:
    (folder / "val2014").mkdir(parents=True)
    for category in ("random", "popular", "adversarial"):
        rows = []
        for index in range(each):
            name = f"COCO_val2014_{index // 2:012d}.jpg"
            if not (folder / "val2014" / name).exists():
                picture(index // 2).save(folder / "val2014" / name)
            rows.append({
                "question_id": index + 1, "image": name, "text": f"Is there a {category} {index} in the image?",
                "label": "no" if index % 2 else "yes",
            })  # fmt: skip
        text = "\n".join(map(json.dumps, rows)) + "\n"
        (folder / f"coco_pope_{category}.json").write_text(text, encoding="utf-8")
    return folder


def write_mmvp(folder: Path, pairs: int = 2, index: str = "lndex") -> Path:
    (folder / "MMVP Images").mkdir(parents=True)
    with (folder / "Questions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([index, "Question", "Options", "Correct Answer"])
        for number in range(2 * pairs):
            picture(number).save(folder / "MMVP Images" / f"{number + 1}.jpg")
            answer = "(b)" if number % 2 else "(a)"
            table.writerow([number + 1, f"Are the wings, of {number // 2}, open?", "(a) Open (b) Closed", answer])
    return folder


def write_mmvet(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    content: dict[str, Any] = {}
    for number, capability in enumerate((["ocr", "math"], ["rec"], ["ocr"])):
        picture(number).save(folder / "images" / f"v1_{number}.png")
        content[f"v1_{number}"] = {
            "imagename": f"v1_{number}.png", "imagesource": "made", "question": f"What is x in {number}?",
            "answer": "-1<AND>-5", "capability": capability,
        }  # fmt: skip
    (folder / "mm-vet.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def mmmu_rows(subject: str, seed: int) -> list[dict[str, Any]]:
    """A question with one picture and four options, and, for Art, one with two pictures and an open one."""
    shown = {"bytes": encoded(seed), "path": "1.png"}
    rows = [{
        "id": f"validation_{subject}_1", "question": "Which of these is shown in <image 1>?",
        "options": "['None', 'red circle', 'blue square', '12']", "answer": "B", "question_type": "multiple-choice",
        "image_1": shown,
    }]  # fmt: skip
    if subject == "Art":
        rows.append({
            "id": "validation_Art_2", "question": "<image 2> differs from <image 1> in?", "options": "['hue', 'size']",
            "answer": "A", "question_type": "multiple-choice", "image_1": shown,
            "image_2": {"bytes": encoded(seed + 1), "path": "2.png"},
        })  # fmt: skip
        rows.append({
            "id": "validation_Art_3", "question": "How many in <image 1>?", "options": "[]",
            "answer": "['12', 'twelve']", "question_type": "open", "image_1": shown,
        })  # fmt: skip
    return rows


def write_mmmu(folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = [(name, pa.string()) for name in ("id", "question", "options", "answer", "question_type")]
    schema = pa.schema([*text, *((f"image_{n}", image) for n in range(1, 8))])
    for seed, subject in enumerate(SUBJECTS):
        (folder / subject).mkdir(parents=True)
        table = pa.Table.from_pylist(mmmu_rows(subject, 10 * seed), schema=schema)
        parquet.write_table(table, folder / subject / "validation-00000-of-00001.parquet")
    return folder

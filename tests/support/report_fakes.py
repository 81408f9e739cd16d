"""Reports with known numbers."""

from __future__ import annotations

from typing import Any

from umcompress.documents.base import Task
from umcompress.documents.report import Report, Size, Speed, StepReport, step_report
from umcompress.documents.scores import Score, score_of_counts

KINDS: dict[Task, list[str]] = {
    "understanding": ["colour", "count", "existence", "position", "comparison"],
    "generation": ["single object", "two objects", "counting", "colors", "position", "color attribution"],
}


def task_score(task: Task, share: float, n: int = 200) -> Score:
    counts = {kind: (round(share * n), n) for kind in KINDS[task]}
    return score_of_counts(counts, dict.fromkeys(KINDS[task], 0.25), "kinds")


def step(
    name: str,
    pass_: str | None,
    scores: tuple[float, float],
    size: int,
    speeds: tuple[float, float],
    **more: Any,
) -> StepReport:
    values: dict[str, Any] = {
        "name": name,
        "pass_": pass_,
        "scores": {
            "understanding": task_score("understanding", scores[0]),
            "generation": task_score("generation", scores[1]),
        },
        "parameters": Size(
            total=size,
            active={"understanding": size // 2, "generation": size // 3},
            by_component={
                "understanding": size // 2,
                "generation": size // 3,
                "shared": size - size // 2 - size // 3,
            },
        ),
        "bytes": Size(total=4 * size),
        "macs_per_token": {"understanding": size // 2, "generation": size // 3},
        "speed": {
            "understanding": Speed(ratio=speeds[0], measures={"first_token_seconds": 0.05 / speeds[0]}),
            "generation": Speed(ratio=speeds[1], measures={"image_seconds": 1.5 / speeds[1]}),
        },
        "seconds": 12.3,
        "samples": f"steps/{name}/samples.png",
    }
    return StepReport.model_validate(values | more)


def report(**more: Any) -> Report:
    baseline = step("baseline", None, (0.96, 0.92), 6_312_000, (1.0, 1.0))
    first = step_report(step("01-layer_drop", "layer_drop", (0.955, 0.92), 5_900_000, (1.11, 1.0)), baseline)
    second = step("02-channel_prune", "channel_prune", (0.95, 0.60), 4_700_000, (1.115, 1.15), edits=6)
    values: dict[str, Any] = {
        "model": "bagel-mini",
        "recipe_name": "quickstart",
        "recipe": {
            "model": "bagel-mini",
            "steps": [{"pass": "layer_drop", "keep_ratio": 0.75}],
            "output": "a",
        },
        "evaluations": {"scenes": {"limit": None, "steps": 20}},
        "steps": (baseline, first, step_report(second, baseline, first)),
    }
    return Report.model_validate(values | more)

"""The loss curves of a training log as a picture.  Pillow only."""

from __future__ import annotations

import json
import math
from pathlib import Path

CURVES = (("autoencoder", "total"), ("vision", "loss"), ("understanding", "loss"),
          ("reading", "loss"), ("generation", "loss"))  # fmt: skip
WIDTH, HEIGHT, MARGIN = 640, 180, 44


def draw_curves(log: Path, out: Path) -> None:
    """One panel a loss: logarithmic loss over steps."""
    from PIL import Image, ImageDraw

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(CURVES)), "white")
    draw = ImageDraw.Draw(sheet)
    for panel, (stage, name) in enumerate(CURVES):
        # A resumed run writes some steps again: the last word counts.
        points = sorted({x["step"]: x[name] for x in lines if x["stage"] == stage and name in x}.items())
        if len(points) < 2:
            continue
        top = panel * HEIGHT
        last = points[-1][0]
        heights = [math.log10(max(value, 1e-6)) for _, value in points]
        low, high = min(heights), max(heights)

        across, down = (WIDTH - MARGIN - 12) / last, (HEIGHT - 52) / max(high - low, 1e-9)
        path = [
            (MARGIN + step * across, top + 26 + (high - height) * down)
            for (step, _), height in zip(points, heights, strict=True)
        ]
        draw.line(path, fill=(40, 80, 220), width=2)
        draw.text((MARGIN, top + 6), f"{stage}: {name}, steps 0 to {last}", fill="black")
        draw.text((2, top + 20), f"{10**high:.3g}", fill="black")
        draw.text((2, top + HEIGHT - 34), f"{10**low:.3g}", fill="black")
    sheet.save(out)

"""Make the pictures and figures of docs/sweep-figures.md anew, on the built-in model as it is now.

`python benchmarks/sweep_pictures.py` runs the four sweeps of recipes/sweeps and the sensitivity into --folder (each
resumes), copies their pictures to docs/, and writes docs/sweep-figures.md; the width sweep goes into README, too.
`--only width` makes one of them, and keeps what the page says of the others.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from umcompress.documents.alone import Sensitivity
from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import StepReport
from umcompress.documents.scores import Change
from umcompress.documents.sweep import Sweep, SweptCell, values_text
from umcompress.report import markdown
from umcompress.report.sensitivity_view import loss_tables
from umcompress.report.sweep_view import sweep_table

DOCS = Path(__file__).parents[1] / "docs"
PAGE, README = DOCS / "sweep-figures.md", DOCS.parent / "README.md"
SWEEPS = {
    "width": "Half, or another share, of the feed-forward channels of one component, the consumer refitted.",
    "depth": "Attentions or feed-forwards of one component dropped, those first that change the stream least.",
    "heads": "Half of the heads of one component, by groups or one query head of each, from the deepest layers on.",
    "experts": "The generation feed-forwards as 32 experts of which 24, 16 or 8 run.",
}
HEAD = """# What the sweeps show

Written by `python benchmarks/sweep_pictures.py`, which runs what is shown here on the built-in model; {}.
Changes are of the held-out loss of each task, paired over the items, with their 95 % interval; lower is better.
How to make such pictures of your model: [sweeps.md](sweeps.md).
"""


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "umcompress", *arguments], check=True, stdout=subprocess.DEVNULL)


def changed(change: Change | None, task: Task, level: float) -> str:
    if change is None:
        return f"{task} not measured"
    half = (change.high - change.low) / 2
    noise = "" if change.beyond_noise else ", within noise"
    return f"{task} loss {change.value:+.3g} ±{half:.2g} ({100 * change.value / level:+.3g} %{noise})"


def sentence(sweep: Sweep, cell: SweptCell) -> str:
    """One cell, in words."""
    result = cell.result
    assert isinstance(result, StepReport)
    share = result.parameters.total / sweep.baseline.parameters.total
    tasks = [task for task in TASKS if task in result.scores]
    parts = [changed(result.changes.get(task), task, sweep.baseline.scores[task].value) for task in tasks]
    return f"* {values_text(cell.values)}, {share:.3f} of the parameters: {'; '.join(parts)}."


def sweep_part(name: str, folder: Path) -> str:
    out = folder / name
    run("sweep", f"sweeps/{name}", "-o", str(out))
    sweep = Sweep.model_validate_json((out / "sweep.json").read_text(encoding="utf-8"))
    shutil.copy(out / "sweep.png", DOCS / f"sweep-{name}.png")
    if name == "width":
        put_into_readme(sweep)
    if (samples := out / "sweep-samples.png").is_file() and name == "width":
        shutil.copy(samples, DOCS / "sweep-width-samples.png")
    _, series = sweep.series()
    # The mildest and the strongest of each series say what there is to say; the table has the rest.
    ends = [cell for cells in series.values() for cell in (cells[0], cells[-1])]
    lines = [sentence(sweep, cell) for cell in ends]
    table = markdown.text((sweep_table(sweep),))
    shown = [f"![{SWEEPS[name]}](sweep-{name}.png)"]
    if name == "width" and (DOCS / "sweep-width-samples.png").is_file():
        shown.append("![The same prompts and seeds along the sweep](sweep-width-samples.png)")
    return "\n\n".join([f"## {name}", SWEEPS[name], *shown, "\n".join(lines), table])


def put_into_readme(sweep: Sweep) -> None:
    """The width sweep's picture, and in a sentence what half of either component's channels costs."""
    halves = [cell for cell in sweep.cells if cell.values.get("steps.0.keep_ratio") == 0.5]
    said = "\n".join(sentence(sweep, cell) for cell in halves)
    about = "the losses of both tasks over the share of channels that either component keeps"
    text = f"![{about}](docs/sweep-width.png)\n\n{said}\n"
    content = README.read_text(encoding="utf-8")
    pattern = r"<!-- sweep: width -->.*?<!-- end of sweep -->"
    whole = f"<!-- sweep: width -->\n{text}<!-- end of sweep -->"
    found, count = re.subn(pattern, lambda _: whole, content, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{README}: {count} places for the width sweep; one is wanted")
    README.write_text(found, encoding="utf-8")


def sensitivity_part(folder: Path) -> str:
    out = folder / "sensitivity"
    run("sensitivity", "bagel-mini", "-o", str(out))
    found = Sensitivity.model_validate_json((out / "sensitivity.json").read_text(encoding="utf-8"))
    shutil.copy(out / "sensitivity.png", DOCS / "sensitivity.png")
    lines = []
    for task in found.baseline:
        own = [part for part in found.parts if task in part.changes]
        most = max(own, key=lambda part: part.changes[task].value)
        free = sum(not part.changes[task].beyond_noise for part in own)
        lines.append(
            f"* {task} loss ({found.baseline[task].value:.3g} as it is) rises most, by {most.changes[task].value:.3g}, "
            f"without the {most.part.replace('_', '-')} of layer {most.layer} of the {most.component} parts; "
            f"{free} of {len(own)} changes stay within noise."
        )
    about = "One part of one layer halved or gone, all else as it was."
    tables = markdown.text(tuple(loss_tables(found)))
    return "\n\n".join(["## sensitivity", about, f"![{about}](sensitivity.png)", "\n".join(lines), tables])


def kept_parts() -> dict[str, str]:
    """What the page has of each sweep already."""
    if not PAGE.is_file():
        return {}
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return {part.split("\n", 1)[0].strip(): f"## {part}".rstrip() for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweeps"), help="where the runs are kept")
    parser.add_argument("--only", choices=[*SWEEPS, "sensitivity"])
    given = parser.parse_args()
    parts, names = kept_parts(), [given.only] if given.only else [*SWEEPS, "sensitivity"]
    for name in names:
        parts[name] = sensitivity_part(given.folder) if name == "sensitivity" else sweep_part(name, given.folder)
        ordered = [parts[key] for key in (*SWEEPS, "sensitivity") if key in parts]
        config = json.loads((Path(__file__).parents[1] / "umcompress/models/bagel_mini/llm_config.json").read_text())
        model = f"{config['num_hidden_layers']} layers of {config['intermediate_size']} channels"
        PAGE.write_text("\n\n".join([HEAD.format(model).strip(), *ordered]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

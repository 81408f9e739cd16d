"""The model card (README.md) of a compressed model: what it is, how it was made, what it scores."""

from __future__ import annotations

from pathlib import Path

from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.report import CheckpointResult, Report
from umcompress.recipe.yaml_writer import yaml_text
from umcompress.report import markdown
from umcompress.report.report_view import report_view

_OURS = ("import umcompress", "", 'model = umcompress.load("path/to/this/folder"{})')
_TRANSFORMERS = (
    "from transformers import AutoModelForCausalLM", "",
    'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{})',
)  # fmt: skip


def _loading(saved: CheckpointResult | None) -> tuple[str, ...]:
    return _TRANSFORMERS if saved is not None and saved.loads_with == "transformers" else _OURS


def write_model_card(report: Report, folder: Path) -> None:
    """The card of the model in `folder`.  A run that was killed and went on writes the same one: it tells no times."""
    result, saved = report.result, report.checkpoint
    before, after = report.baseline.parameters.total, result.parameters.total
    recipe = dict(report.recipe or {})
    recipe.pop("output", None)
    lines = [
        f"# {report.model}, compressed with umcompress",
        "",
        f"{after:,} parameters of {before:,} ({after / before:.1%}).  Weights in safetensors; load with",
        "",
        "```python",
        *(line.format(", trust_remote_code=True" if saved and saved.own_code else "") for line in _loading(saved)),
        "```",
        "",
        "## What it cost",
        "",
        markdown.text(report_view(report, timed=False)),
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml_text(recipe).rstrip(),
        "```",
        "",
        f"Versions: {', '.join(f'{name} {value}' for name, value in report.versions.items())}.",
    ]
    write_text_atomic(folder / "README.md", "\n".join(lines) + "\n")

"""What a run depends on, made up: for tests of folders without a model."""

from __future__ import annotations

from umcompress.run.dependencies import Dependencies, StepDependencies


def depends_on(*steps: str, **parts: str) -> Dependencies:
    """A baseline that depends on `parts`, then steps one after the other, each on an option of its own."""
    found = [StepDependencies(name="baseline", parts={"the model's x": "sha256:1", **parts})]
    found += [StepDependencies(name=n, start=i, parts={"keep_ratio": "0.5"}) for i, n in enumerate(steps)]
    return Dependencies(steps=tuple(found))

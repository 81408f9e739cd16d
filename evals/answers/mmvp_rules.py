"""MMVP's rules: two pictures that look alike to CLIP, one question; both must be answered rightly.

Tong et al., "Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs" (2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def options(text: str) -> dict[str, str]:
    """`(a) Open (b) Closed` -> {"A": "Open", "B": "Closed"}."""
    first, _, second = text.partition("(b)")
    return {"A": first.replace("(a)", "").strip(), "B": second.strip()}


def letter(text: str) -> str:
    """`(a)` -> A."""
    return text.strip().strip("()").upper()


def parse(response: str, choices: Mapping[str, str]) -> str:
    """The option that an answer means, by the reference's rule; the answer itself where none is recognised."""
    text = response.strip()
    if len(text) <= 1 or text[0] in choices:
        return text[:1]
    return next((name for name, option in choices.items() if option in text), text)


def pairs(right: Sequence[bool]) -> tuple[int, int]:
    """(pairs with both right, pairs) of answers in the order of the file.  ValueError for an odd number."""
    if len(right) % 2:
        raise ValueError(f"{len(right)} answers do not make pairs")
    both = [a and b for a, b in zip(right[::2], right[1::2], strict=True)]
    return sum(both), len(both)

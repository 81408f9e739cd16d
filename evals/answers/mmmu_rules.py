"""MMMU's rules: the official parser, as lm-eval runs it, and the shorter rule of the reference code.

Yue et al., "MMMU" (2023).  The two disagree, above all on what is no plain letter, so their numbers are named
apart.  Where the official parser finds no letter it draws one at random; here that is None, and the caller
draws and counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLM"
Parsed = str | float
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_choice(response: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer means; of several that are mentioned, the last.

    In this order: letters in brackets; letters that stand alone; in answers of more than five words the text
    of an option.  None where nothing is found.
    """
    for mark in ",.!?;:'":
        response = response.strip(mark)
    text = f" {response} "
    letters = LETTERS[: len(options)]
    for form in ("({})", " {} "):
        found = [letter for letter in letters if form.format(letter) in text]
        if found:
            return max(found, key=lambda letter: text.rfind(form.format(letter)))
    if len(text.split()) <= 5:
        return None
    lower = text.lower()
    places = {letter: lower.rfind(option.lower()) for letter, option in zip(letters, options, strict=True)}
    # max keeps the first of equals, and dictionaries keep the order of the letters
    found = [letter for letter, place in places.items() if place >= 0]
    return max(found, key=lambda letter: places[letter]) if found else None


def _normal(text: str) -> list[Parsed]:
    """A number rounded to two places, or the text in lower case; a lone character with a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
    return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _key_parts(response: str) -> list[str]:
    """Of each line the shortest tail after a word like "is" or "thus"; the whole answer where there is none."""
    lines = response.strip().strip(".").lower().split("\n")
    parts = []
    for number, line in enumerate(lines):
        cues = (*_CUES, "=") if number == len(lines) - 1 else _CUES
        shortest = ""
        for cue in cues:
            if cue in line:
                tail = line.split(cue)[-1].strip()
                shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in set(":,.!?;'"):
            parts.append(shortest)
    return parts or [response.strip().strip(".").lower()]


def parse_open(response: str) -> list[Parsed]:
    """What an answer to an open question may mean: phrases and numbers, sorted, each once."""
    parts = _key_parts(response)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    return sorted({value for text in (*parts, *numbers) for value in _normal(text)}, key=str)


def judge_open(truth: str | Sequence[str], parsed: Sequence[Parsed]) -> bool:
    """Whether a number that was found equals an answer, or a phrase contains one."""
    answers = [value for text in ([truth] if isinstance(truth, str) else truth) for value in _normal(text)]
    phrases = [answer for answer in answers if isinstance(answer, str)]
    return any(
        any(phrase in found for phrase in phrases) if isinstance(found, str) else found in answers
        for found in parsed
    )

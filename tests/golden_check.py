"""Check our models and scorers against golden data: `python tests/golden_check.py KIND PATH`.

Models: a folder; a line per checked tensor with its worst absolute error.  Scorers: a file; a line per value.
Exit code 1: an error over the bar, a value that differs, or something expected that nothing checked.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

KINDS = {"bagel": "golden.bagel", "bagel-moe": "golden.bagel_moe"}
SCORES = ("geneval", "mme", "misc")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(*KINDS, *SCORES))
    parser.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    if options.kind in SCORES:
        return int(getattr(import_module("golden.scores"), options.kind)(options.path))
    from golden.checker import Checker

    checker = Checker(options.path)
    import_module(KINDS[options.kind]).check(options.path, checker)
    return checker.finish()


if __name__ == "__main__":
    sys.exit(main())

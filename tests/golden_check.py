"""Check our models against folders of golden data: `python tests/golden_check.py bagel PATH`.

Prints a line per checked tensor with its worst absolute error.  Exit code 1: an error over the bar, a
discrete value that differs, or an `out.` tensor that nothing checked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from golden.checker import Checker

KINDS = ("bagel",)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    options = parser.parse_args(arguments)
    from golden import bagel

    checker = Checker(options.path)
    bagel.check(options.path, checker)
    return checker.finish()


if __name__ == "__main__":
    sys.exit(main())

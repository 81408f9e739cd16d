"""lm-eval's command line with our model and our tasks."""

from __future__ import annotations

import sys

from umcompress.errors import UmcompressError
from umcompress.lm_eval import TASKS, register


def main() -> int:
    """As `lm_eval`, on sys.argv; the shipped tasks are known by name, beside those of --include_path."""
    try:
        register()
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging

        setup_logging()
        harness = HarnessCLI()
        arguments = harness.parse_args()
        if hasattr(arguments, "include_path"):
            given = [arguments.include_path] if arguments.include_path else []
            arguments.include_path = [str(TASKS), *given]
        harness.execute(arguments)
    except UmcompressError as error:
        print(f"umcompress: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

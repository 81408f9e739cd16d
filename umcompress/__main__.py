"""`python -m umcompress`, and so `accelerate launch -m umcompress`: the command line."""

import sys

from umcompress.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

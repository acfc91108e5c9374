"""`python -m sgate_serve` is the `sgate` command."""

import sys

from sgate_serve.cli import main

if __name__ == "__main__":
    sys.exit(main())

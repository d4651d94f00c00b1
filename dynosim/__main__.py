"""`python -m dynosim` is `dynosim`."""

import sys

from dynosim.cli import main

if __name__ == "__main__":
    sys.exit(main())

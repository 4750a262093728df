"""`python -m stitchkit`: the same commands as `stitchkit`."""

import sys

from stitchkit.cli import main

if __name__ == "__main__":
    sys.exit(main())

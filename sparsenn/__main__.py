"""``python -m sparsenn`` is the command line."""

import sys

from sparsenn.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m chart_harness`."""

import sys

from chart_harness.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m policyc` does what `policyc` does."""

from __future__ import annotations

import sys

from policyc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

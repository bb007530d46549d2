"""`python -m domainbuilder`: the same as the `domainbuilder` command."""

from __future__ import annotations

import sys

from domainbuilder.cli import main

if __name__ == "__main__":
    sys.exit(main())

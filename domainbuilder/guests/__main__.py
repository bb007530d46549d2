"""`python -m domainbuilder.guests [NAME]`: the path of a bundled guest, or the list of them."""

from __future__ import annotations

import sys

from domainbuilder.errors import BuildError, ExitCode
from domainbuilder.guests import names, path

try:
    print(path(sys.argv[1]) if len(sys.argv) > 1 else "\n".join(names()))
except BuildError as error:
    print(f"domainbuilder: error: {error}", file=sys.stderr)
    sys.exit(ExitCode.UNUSABLE_INPUT)

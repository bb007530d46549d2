"""Validation of section layouts: GNU ld scripts, link maps and linked ELF files.

Nothing here knows Xen's CPU side, and nothing here imports `domainbuilder` or `hvcore`. The modules are
loaded when first used, because a hook that lints one script must not pay for what it does not need.
"""

from __future__ import annotations

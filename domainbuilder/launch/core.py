"""Which core runs guests here: the compiled one, or Python alone."""

from __future__ import annotations

from hvcore.cpu.compiled import describe


def describe_core() -> str:
    """For `--version`: "compiled (digest of its sources)", or "Python" and why."""
    return describe()

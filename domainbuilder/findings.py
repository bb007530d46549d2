"""What is worth telling about a kernel, beyond yes and no: a stable id, where it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from domainbuilder.errors import Where


class Severity(StrEnum):
    """How bad a finding is; `--check` fails on an error."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `id` never changes its meaning; `advice` says what to do about it."""

    id: str
    severity: Severity
    message: str
    advice: str = ""
    where: Where | None = None

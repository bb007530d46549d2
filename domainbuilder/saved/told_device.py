"""Whether what a file says of a device, a disk or an interface, can be what its dataclass holds."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def has_fields_of(kind: type[Any], told: object) -> bool:
    """Whether `told` is a dictionary of the fields of the dataclass `kind`, each of its type and no other."""
    kinds = {field.name: str(field.type) for field in fields(kind)}
    return (
        isinstance(told, dict)
        and set(told) == set(kinds)
        and all(type(told[name]).__name__ == kind for name, kind in kinds.items())
    )

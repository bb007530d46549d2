"""The JSON that `domainbuilder cache --format json` prints, as pydantic models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from domainbuilder.reports import Model
from domainbuilder.saved.listing import Entry


class EntryModel(Model):
    """One kept thing."""

    kind: Literal["kernel", "domain", "named"]
    name: str
    what: str
    bytes: int
    used: datetime


class CacheReport(Model):
    """All that is kept."""

    entries: list[EntryModel]
    bytes: int


def cache_report(entries: list[Entry]) -> CacheReport:
    """The listing as a model."""
    models = [
        EntryModel(
            kind=entry.kind,
            name=entry.name,
            what=entry.what,
            bytes=entry.kept.size,
            used=datetime.fromtimestamp(entry.kept.used, UTC),
        )
        for entry in entries
    ]
    return CacheReport(entries=models, bytes=sum(model.bytes for model in models))

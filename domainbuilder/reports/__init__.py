"""The JSON that the commands print, as pydantic models, and what all of it shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from domainbuilder.kernel.findings import Finding

Text = Annotated[
    str,  # what the user called a file may have bytes that are no UTF-8
    BeforeValidator(lambda text: text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")),
]

Address = Annotated[
    int,
    BeforeValidator(lambda value: int(value, 16) if isinstance(value, str) else value),
    PlainSerializer(hex, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^0x[0-9a-f]+$"}),
]


class Model(BaseModel):
    """A part of a report: it never changes, and has the fields that its schema says and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FindingReport(Model):
    """One finding; `offset` is in the ELF image."""

    id: str
    slug: str
    severity: Literal["info", "warning", "error"]
    offset: int | None
    message: Text
    advice: str


def finding_report(finding: Finding) -> dict[str, str | int | None]:
    """The fields of a `FindingReport`."""
    return {
        "id": finding.rule.id,
        "slug": finding.rule.slug,
        "severity": finding.severity.name.lower(),
        "offset": finding.offset,
        "message": finding.message,
        "advice": finding.rule.advice,
    }

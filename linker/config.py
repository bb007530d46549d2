"""Reads layout.toml, or the table [tool.domainbuilder.layout] of pyproject.toml, into Settings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import LayoutInputError
from .rules import load
from .settings import DEFAULTS, ArrayRule, Budget, RegionRule, Settings, SymbolRule
from .source import read_bytes
from .special import SPECIAL

MAX_CONFIG = 4 << 20

_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+) ?(?:([KMG])(?:i?B)?)?")
_UNITS = {None: 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _number(value: object) -> object:
    """Return the bytes of a text such as "4K", "0x10K", "1 MiB"; anything else as it is."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError('expected a number, or a text such as "4K" or "0x100M"')
    return int(match[1], 16 if match[1][:2].lower() == "0x" else 10) * _UNITS[match[2]]


Address = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=1 << 64)]
Positive = Annotated[int, BeforeValidator(_number), Field(gt=0, lt=1 << 64)]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=lambda name: name.replace("_", "-")
    )


class SymbolModel(_Model):
    """`[[symbol]]`: what is expected of a symbol."""

    name: str
    address: Address | None = None
    align: Positive | None = None
    section: str | None = None


class SectionModel(_Model):
    """`[[section]]`: limits of the output sections whose names match."""

    name: str
    max_size: Address | None = None
    size_modulus: Positive | None = None
    min_align: Positive | None = None
    address: Address | None = None


class RegionModel(_Model):
    """`[[region]]`: a memory region, or the budget of one that the script has."""

    name: str
    origin: Address | None = None
    length: Positive | None = None
    budget: Address | None = None


class ArrayModel(_Model):
    """`[[array]]`: a table between two symbols."""

    start: str
    stop: str
    entry: Positive


class LayoutModel(_Model):
    """The whole file; every key is optional."""

    rules: dict[str, Literal["off", "note", "warning", "error"]] = {}
    page_size: Positive = DEFAULTS.page_size
    page_aligned: list[str] = list(DEFAULTS.page_aligned)
    page_symbols: list[str] = list(DEFAULTS.page_symbols)
    end_symbols: list[str] = list(DEFAULTS.end_symbols)
    expected_inputs: list[str] = []
    keep: list[str] = list(DEFAULTS.keep)
    allowed_orphans: list[str] = []
    image_max_size: Positive | None = None
    xen: bool | None = None
    symbol: list[SymbolModel] = []
    section: list[SectionModel] = []
    region: list[RegionModel] = []
    array: list[ArrayModel] = []


def _settings(model: LayoutModel) -> Settings:
    return Settings(
        severities=dict(model.rules),
        page_size=model.page_size,
        page_aligned=tuple(model.page_aligned),
        page_symbols=tuple(model.page_symbols),
        end_symbols=tuple(model.end_symbols),
        expected_inputs=tuple(model.expected_inputs),
        keep=tuple(model.keep),
        allowed_orphans=tuple(model.allowed_orphans),
        symbols=tuple(SymbolRule(**item.model_dump()) for item in model.symbol),
        sections=tuple(Budget(**item.model_dump()) for item in model.section),
        regions=tuple(RegionRule(**item.model_dump()) for item in model.region),
        arrays=tuple(ArrayRule(**item.model_dump()) for item in model.array),
        image_max_size=model.image_max_size,
        xen=model.xen,
    )


def parse_config(path: str, text: str, *, pyproject: bool = False) -> Settings | None:
    """Return the settings in TOML text; None when a pyproject.toml has none. Raises LayoutInputError."""
    try:
        table: Any = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LayoutInputError(f"this is no TOML: {error}", file=path) from error
    if pyproject:
        tool = table.get("tool")
        ours = tool.get("domainbuilder") if isinstance(tool, dict) else None
        table = ours.get("layout") if isinstance(ours, dict) else None
        if table is None:
            return None
    try:
        model = LayoutModel.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the table"
        found = first["input"] if isinstance(first["input"], str | int | float | bool) else None
        raise LayoutInputError(
            f"{key}: {first['msg'].removeprefix('Value error, ')}", file=path, found=found
        ) from error
    known = {rule.id for rule in load()} | set(SPECIAL)
    for name in model.rules:
        if name not in known:
            raise LayoutInputError("unknown rule in the configuration", file=path, found=name)
    return _settings(model)


def read_config(path: str) -> Settings:
    """Read a configuration file that was named. Raises LayoutInputError."""
    data = read_bytes(path, MAX_CONFIG)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LayoutInputError("this is no UTF-8 text", file=path, offset=error.start) from error
    settings = parse_config(path, text, pyproject=Path(path).name == "pyproject.toml")
    if settings is None:
        raise LayoutInputError("there is no table [tool.domainbuilder.layout]", file=path)
    return settings

"""The JSON form of a configuration: an object with the names of xl.cfg(5), written and read.

Strings, numbers and lists of strings stand as they are, so that each name means what it means in xl.cfg.
"""

from __future__ import annotations

import json

from domainbuilder.xl.config_syntax import ConfigError, Setting, Source, Value
from domainbuilder.xl.domain_config import DomainConfig
from hvcore.backends.disk import Disk

# Field of DomainConfig -> name in xl.cfg, where they differ.
_NAMES = {"disks": "disk", "vifs": "vif"}
_LISTS = frozenset(("vfb",))  # of which there is one item at most


def to_json(config: DomainConfig) -> str:
    """The configuration as JSON, without what nobody asked for; `read_config` reads it again."""
    values: dict[str, object] = {}
    for field in config.__dataclass_fields__:
        value = getattr(config, field)
        if value in (None, ()) or (value == "" and field not in _LISTS):
            continue
        if field in _LISTS:
            value = (value,)
        if isinstance(value, tuple):
            value = [_text(item) for item in value]
        values[_NAMES.get(field, field)] = value
    return json.dumps(values, indent=2) + "\n"


def _text(item: Disk | str) -> str:
    """An item of a list as xl.cfg has it."""
    return disk_text(item) if isinstance(item, Disk) else item


def disk_text(disk: Disk) -> str:
    """A disk as `parse_disk` reads it: everything by name, and the target, which may have commas, last."""
    words = [f"format={disk.format}", f"vdev={disk.vdev}", f"access={'rw' if disk.readwrite else 'ro'}"]
    words += ["cdrom"] if disk.is_cdrom else []
    words += ["direct-io-safe"] if disk.direct_io_safe else []
    words += [] if disk.discard else ["no-discard"]
    words += [] if disk.trusted else ["untrusted"]
    return ",".join([*words, f"target={disk.target}"])


def is_json(text: str) -> bool:
    """Whether a configuration is in this form: no name of xl.cfg begins with a brace."""
    return text.lstrip().startswith("{")


def parse_json(source: Source) -> dict[str, Setting]:
    """The settings of a JSON object. Raises ConfigError with the line of the name."""
    try:
        values = json.loads(source.text)
    except json.JSONDecodeError as error:
        raise source.fail(error.pos, error.msg) from error
    except RecursionError as error:
        raise ConfigError(f"{source.name}: nested too deeply") from error
    if not isinstance(values, dict):
        raise source.fail(0, "not an object")
    settings = {}
    for name, value in values.items():
        at = max(source.text.find(json.dumps(name)), 0)
        settings[name] = Setting(name, _value(source, at, name, value), added=False, source=source, at=at)
    return settings


def _value(source: Source, at: int, name: str, value: object) -> Value:
    if isinstance(value, list):
        return Value(source, at, None, tuple(_value(source, at, name, item) for item in value))
    if isinstance(value, bool):
        return Value(source, at, str(int(value)))
    if isinstance(value, str) and "\0" in value:
        raise source.fail(at, f"{name}: a NUL, which no text has")
    if isinstance(value, str | int):
        return Value(source, at, str(value))
    raise source.fail(
        at, f"{name}: no such value", found=json.dumps(value)[:40], expected="a string, a number or a list"
    )

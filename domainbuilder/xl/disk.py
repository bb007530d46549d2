"""xl's disk syntax (xl-disk-configuration(5)): `target, format, vdev, access`, and parameters by name.

As tools/libs/util/libxlu_disk_l.l of Xen 4.17 reads it, which is more than its manual page says; what libxl
does for a PV guest alone is honoured, the rest is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from domainbuilder.errors import BuildError, Where
from hvcore.backends.disk import Disk

_FORMATS = ("", "raw", "qcow", "qcow2", "vhd", "empty", "qed")
_READABLE = ("raw", "qcow2", "empty")
_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
_IGNORED_PREFIXES = ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")
_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")
_KNOWN = "|".join((*_FORMAT_PREFIXES, *_IGNORED_PREFIXES, *_SCRIPT_PREFIXES))
_PREFIX = re.compile(rf"({_KNOWN}):|([a-z][a-z0-9]*):(?=$|[^a-z0-9])", re.DOTALL)


@dataclass
class _Parsed:
    """What has been read of one disk. `depr` is set once an old prefix was there."""

    text: str
    values: dict[str, str] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    had_prefix: bool = False
    access_set: bool = False

    def fail(self, reason: str, found: str, expected: str | None = None) -> BuildError:
        return BuildError(reason, where=Where(f"disk {self.text!r}"), found=found, expected=expected)

    def save(self, name: str, value: str) -> None:
        """A string that may be given once."""
        if self.values.get(name):
            raise self.fail(f"{name} respecified", value)
        self.values[name] = value

    def choose(self, name: str, value: str, allowed: tuple[str, ...], default: str) -> None:
        """One of the values, which may be given twice if it is the same."""
        if value not in allowed:
            raise self.fail(f"unknown value for {name}", value, ", ".join(filter(None, allowed)))
        value = value or default
        if self.values.get(name, value) != value:
            raise self.fail(f"{name} respecified", value)
        self.values[name] = value


def _format(p: _Parsed, value: str) -> None:
    p.choose("format", value, _FORMATS, "raw")


def _access(p: _Parsed, value: str) -> None:
    if value not in ("r", "ro", "rw", "w", ""):
        raise p.fail("unknown value for access", value, "r, ro, w, rw")
    p.flags["readwrite"] = value not in ("r", "ro")


def _devtype(p: _Parsed, value: str) -> None:
    if value not in ("cdrom", "disk"):
        raise p.fail("unknown value for type", value, "disk, cdrom")
    p.flags["cdrom"] = value == "cdrom"


def _backendtype(p: _Parsed, value: str) -> None:
    p.choose("backendtype", value, ("phy", "tap", "qdisk", "standalone"), "phy")


def _specification(p: _Parsed, value: str) -> None:
    p.choose("specification", value, ("xen", "virtio"), "xen")


_VALUED: Mapping[str, Callable[[_Parsed, str], None]] = {
    "format": _format,
    "access": _access,
    "devtype": _devtype,
    "backendtype": _backendtype,
    "specification": _specification,
    "vdev": lambda p, value: p.save("vdev", value),
    "script": lambda p, value: p.save("script", value),
    "backend": lambda p, value: p.save("backend", value),
}
_FLAGS: Mapping[str, tuple[str, bool]] = {
    "cdrom": ("cdrom", True),
    "direct-io-safe": ("direct_io_safe", True),
    "discard": ("discard", True),
    "no-discard": ("discard", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
    "colo": ("colo", True),
    "no-colo": ("colo", False),
}


def _vdev(p: _Parsed, value: str) -> bool:
    """`vdev:cdrom` and `vdev:disk`; False where there is no type with it."""
    vdev, colon, kind = value.rpartition(":")
    if not colon:
        return False
    if kind not in ("cdrom", "disk"):
        raise p.fail("unknown deprecated type", kind, "cdrom, disk")
    p.save("vdev", vdev)
    p.flags["cdrom"] = kind == "cdrom"
    return True


def _positional(p: _Parsed, value: str) -> None:
    if "target" not in p.values:
        p.values["target"] = value
    elif not p.had_prefix and "format" not in p.values:
        if not p.values["target"] and _vdev(p, value):
            p.values["format"] = "empty"
        else:
            _format(p, value)
    elif "vdev" not in p.values:
        if not _vdev(p, value):
            p.save("vdev", value)
    elif not p.access_set:
        p.access_set = True
        _access(p, value)
    else:
        raise p.fail("too many positional parameters", value)


def _prefixed(p: _Parsed, rest: str) -> str | None:
    """What is behind an old prefix (`file:`, `tap:qcow2:`); None where there is none."""
    found = _PREFIX.match(rest)
    if found is None:
        return None
    prefix = found[1] or found[2]
    if prefix in _FORMAT_PREFIXES:
        _format(p, prefix)
    elif prefix in _SCRIPT_PREFIXES:
        p.save("script", f"block-{prefix}")
    elif prefix not in _IGNORED_PREFIXES:
        raise p.fail("unknown deprecated disk prefix", prefix)
    p.had_prefix = True
    return rest[found.end() :]


def _read(p: _Parsed) -> None:
    rest = p.text.lstrip(" \t\n")
    while rest:
        if "target" not in p.values:
            behind = _prefixed(p, rest)
            if behind is not None:
                rest = behind
                continue
        if rest.startswith("target="):
            p.save("target", rest.removeprefix("target="))
            return
        word, _, rest = rest.partition(",")
        rest = rest.lstrip(" \t\n")
        name, equals, value = word.partition("=")
        if equals and name in _VALUED:
            _VALUED[name](p, value)
        elif not equals and word in _FLAGS:
            flag, on = _FLAGS[word]
            p.flags[flag] = on
        elif equals:
            raise p.fail("unknown parameter", word, ", ".join((*_VALUED, "target")))
        else:
            _positional(p, word)


def _check(p: _Parsed) -> None:
    """What libxlu_disk.c looks at in the end, and what this host does not have."""
    values, flags = p.values, p.flags
    if not values.get("vdev"):
        raise p.fail("no vdev specified", "none", "such as xvda")
    if "target" not in values and not flags.get("cdrom"):
        raise p.fail("no target specified (and device not removable)", "none")
    if values["format"] not in _READABLE:
        raise p.fail("images of this format are not read here", values["format"], "raw, qcow2")
    for name, mine in (("backend", ("", "0", "Domain-0")), ("specification", ("xen",)),
        ("backendtype", ("phy", "qdisk")), ("script", ("block",))):  # fmt: skip
        if values.get(name, mine[0]) not in mine:
            raise p.fail(f"there is no such {name} here", values[name], ", ".join(filter(None, mine)))
    if flags.get("colo"):
        raise p.fail("COLO is not supported", "colo")


def parse_disk(text: str, *, snapshot: bool = False) -> Disk:
    """The disk that `text` describes; `snapshot`: what the guest writes to it stays in memory.

    Raises BuildError, with the word that is wrong and what may stand there.
    """
    p = _Parsed(text)
    _read(p)
    p.values.setdefault("format", "raw")
    is_cdrom = p.flags.get("cdrom", False)
    if is_cdrom and not p.values.get("target"):
        p.values["format"] = "empty"
    _check(p)
    disk = Disk(
        vdev=p.values["vdev"],
        target=p.values.get("target", ""),
        format=p.values["format"],
        readwrite=p.flags.get("readwrite", True) and not is_cdrom,
        is_cdrom=is_cdrom,
        removable=is_cdrom,
        discard=p.flags.get("discard", True),
        direct_io_safe=p.flags.get("direct_io_safe", False),
        trusted=p.flags.get("trusted", True),
        snapshot=snapshot and p.values["format"] != "empty",
    )
    if disk.devid < 0:
        raise p.fail("Invalid or unsupported virtual disk identifier", disk.vdev, "such as xvda, xvdb1, hdc")
    return disk

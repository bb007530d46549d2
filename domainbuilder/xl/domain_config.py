"""What a configuration asks for, as one frozen value: settings are checked, and told what becomes of them.

Source: parse_config_data() of tools/xl/xl_parse.c of Xen 4.17. Where xl only warns of a wrong value and goes
on without it, this is an error: a domain that is not the one that was asked for helps nobody.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from domainbuilder.errors import BuildError
from domainbuilder.xl.config_keys import ACTIONS, KEYS, Fate, Key, Kind
from domainbuilder.xl.config_syntax import ConfigError, Setting, Value
from domainbuilder.xl.disk import parse_disk
from domainbuilder.xl.vfb import parse_vfb, vfb_text
from domainbuilder.xl.vif import parse_vif
from hvcore.backends.disk import Disk

_LONG = range(-(1 << 63), 1 << 63)
_INT32 = range(-(1 << 31), 1 << 31)
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")  # strtol with base 0
_MOST_MEMORY = 1 << 20  # MB: far beyond what a domain gets here
_MOST_VCPUS = 4096


_VFB_KEYS = ("vnc", "vnclisten", "vncpasswd", "vncdisplay", "vncunused", "sdl", "opengl", "keymap", "display",
    "xauthority")  # fmt: skip


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A PV domain as xl.cfg(5) describes it. None is what nobody asked for."""

    name: str
    kernel: str | None = None
    ramdisk: str | None = None
    cmdline: str = ""
    bootloader: str | None = None
    bootloader_args: tuple[str, ...] = ()
    uuid: str | None = None
    memory: int | None = None  # MB
    maxmem: int | None = None
    vcpus: int = 1
    maxvcpus: int = 1
    cap: int = 0
    rtc_timeoffset: int = 0  # seconds
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_watchdog: str = "destroy"
    on_crash: str = "destroy"
    on_soft_reset: str = "soft-reset"
    disks: tuple[Disk, ...] = ()
    vifs: tuple[str, ...] = ()  # as xl writes them: domainbuilder.xl.vif.parse_vif()
    vfb: str | None = None  # the same: domainbuilder.xl.vfb.parse_vfb()

    def with_snapshots(self) -> DomainConfig:
        """The domain whose disks' files stay as they are."""
        return replace(self, disks=tuple(replace(disk, snapshot=True) for disk in self.disks))


class Remark(NamedTuple):
    """Something to be told that is no error: where (NAME:LINE), and what."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Read(NamedTuple):
    """A configuration, and what is to be told of it."""

    config: DomainConfig
    remarks: tuple[Remark, ...]


def read_config(name: str, settings: Mapping[str, Setting]) -> Read:
    """What the settings of the configuration called `name` ask for.

    Raises ConfigError: a wrong value, or what cannot be had here.
    """
    remarks = [remark for setting in settings.values() for remark in _fate(setting)]
    return Read(_Settings(settings, name, remarks).config(), tuple(remarks))


def _fate(setting: Setting) -> Iterable[Remark]:
    """Check a value's kind, and say what becomes of it."""
    key = KEYS.get(setting.name)
    if key is None:
        yield Remark(setting.place, f"{setting.name}: unknown, and ignored")
        return
    words = _words(setting, key)
    if key.fate is Fate.REFUSED and any(word not in key.idle for word in words):
        raise setting.fail(f"cannot be had: {key.why}", found=", ".join(map(repr, words)))
    if key.fate is Fate.IDLE and words:
        yield Remark(setting.place, f"{setting.name} has no effect: {key.why}")
    elif key.fate is Fate.HVM:
        yield Remark(setting.place, f"{setting.name} is ignored, as xl does: {key.fate.value}")


def _words(setting: Setting, key: Key) -> list[str]:
    """The value as strings. Raises ConfigError where it is of another kind."""
    value = setting.value
    if key.kind is Kind.LIST or (key.kind is Kind.WORDS and value.word is None):
        if value.word is not None:
            raise setting.fail("a single value", found=repr(value.word), expected=key.kind.value)
        return [_word(item, key.kind) for item in value.items] if setting.name != "vnuma" else ["a node"]
    word = _word(value, key.kind)
    if key.kind in (Kind.NUMBER, Kind.BOOLEAN):
        return [str(_number(setting, word))]
    return [word]


def _word(value: Value, kind: Kind) -> str:
    if value.word is None:
        raise value.fail("a list", expected=kind.value)
    return value.word


def _number(setting: Setting, word: str) -> int:
    """xlu_cfg_get_long."""
    if setting.added:
        raise setting.fail("can't use += with numbers")
    if not _NUMBER.fullmatch(word.lstrip()):
        raise setting.value.fail(f"{setting.name} is not a valid number", found=repr(word))
    digits = word.lstrip().lower()
    octal = re.fullmatch(r"[+-]?0[0-7]+", digits)
    number = int(digits, 8 if octal else 0)
    if number not in _LONG:
        raise setting.value.fail(f"{setting.name} is out of range", found=repr(word))
    return number


class _Settings:
    """Typed access to the settings. Each method raises ConfigError for what is not allowed."""

    def __init__(self, settings: Mapping[str, Setting], name: str, remarks: list[Remark]) -> None:
        self._settings = settings
        self._name = name
        self._remarks = remarks

    def string(self, name: str) -> str | None:
        setting = self._settings.get(name)
        return None if setting is None else setting.value.word

    def choice(self, name: str, default: str, allowed: Iterable[str]) -> str:
        setting = self._settings.get(name)
        word = default if setting is None else setting.value.word or ""
        if setting is not None and word not in allowed:
            raise setting.value.fail(f"{name}: unknown", found=repr(word), expected=", ".join(allowed))
        return word

    def number(self, name: str, allowed: range) -> int | None:
        setting = self._settings.get(name)
        if setting is None:
            return None
        number = _number(setting, setting.value.word or "")
        if number not in allowed:
            expected = f"{allowed.start} to {allowed.stop - 1}"
            raise setting.value.fail(f"{name} is out of range", found=str(number), expected=expected)
        return number

    def items(self, name: str) -> tuple[Value, ...]:
        setting = self._settings.get(name)
        return () if setting is None else setting.value.items

    def fail(self, name: str, reason: str) -> ConfigError:
        setting = self._settings.get(name)
        return setting.fail(reason) if setting is not None else ConfigError(f"{self._name}: {reason}")

    def remark(self, name: str, text: str) -> None:
        self._remarks.append(Remark(self._settings[name].place, text))

    def config(self) -> DomainConfig:
        """Everything together."""
        self._type()
        if not (name := self.string("name")):
            raise self.fail("name", "Domain name must be specified")
        if "/" in name:
            raise self.fail("name", "a domain's name has no slash")
        vcpus = self.number("vcpus", range(1, _MOST_VCPUS))
        maxvcpus = self.number("maxvcpus", range(1, _MOST_VCPUS)) or vcpus or 1
        if vcpus is not None and maxvcpus < vcpus:
            raise self.fail("maxvcpus", "maxvcpus < vcpus")
        memory = self.number("memory", range(1, _MOST_MEMORY))
        maxmem = self.number("maxmem", range(1, _MOST_MEMORY))
        if memory is not None and maxmem is not None and maxmem < memory:
            raise self.fail("maxmem", "maxmem is below memory")
        memory = maxmem if memory is None else memory  # as libxl has it
        return DomainConfig(
            name=name,
            kernel=self._kernel(),
            ramdisk=self.string("ramdisk"),
            cmdline=self._cmdline(),
            bootloader=self._bootloader(),
            bootloader_args=self._bootloader_args(),
            uuid=self._uuid(),
            memory=memory,
            maxmem=maxmem,
            vcpus=vcpus or 1,
            maxvcpus=maxvcpus,
            cap=self.number("cap", range(100 * _MOST_VCPUS)) or 0,
            rtc_timeoffset=self.number("rtc_timeoffset", _INT32) or 0,
            on_poweroff=self.choice("on_poweroff", "destroy", ACTIONS),
            on_reboot=self.choice("on_reboot", "restart", ACTIONS),
            on_watchdog=self.choice("on_watchdog", "destroy", ACTIONS),
            on_crash=self.choice("on_crash", "destroy", ACTIONS),
            on_soft_reset=self.choice("on_soft_reset", "soft-reset", ACTIONS),
            disks=self._disks(),
            vifs=self._vifs(),
            vfb=self._vfb(),
        )

    def _type(self) -> None:
        """Xl takes beginnings of the words as well (strncmp with the word's own length)."""
        for name, kinds in (("type", ("hvm", "pv", "pvh")), ("builder", ("hvm", "generic"))):
            word = self.string(name)
            if word is None:
                continue
            kind = next((kind for kind in kinds if kind.startswith(word)), None)
            if kind is None:
                raise self.fail(name, f"Invalid domain type {word}")
            if kind not in ("pv", "generic"):
                raise self.fail(name, f"{kind} guests do not run here: PV guests do")

    def _kernel(self) -> str | None:
        kernel, firmware = self.string("kernel"), self.string("firmware")
        if firmware is not None:
            if kernel is not None:
                raise self.fail("firmware", "both kernel and firmware specified")
            if firmware not in ("pvgrub32", "pvgrub64"):
                raise self.fail("firmware", "only pvgrub{32|64} supported as firmware options")
            raise self.fail("firmware", "Xen's own files are not here; kernel= names a PV-GRUB")
        if kernel is None and not self.string("bootloader"):
            raise ConfigError(f"{self._name}: Neither kernel nor bootloader specified")
        return kernel

    def _cmdline(self) -> str:
        """parse_cmdline()."""
        cmdline, root, extra = map(self.string, ("cmdline", "root", "extra"))
        if cmdline is not None:
            for name in ("root", "extra"):
                if self.string(name) is not None:
                    self.remark(name, f"ignoring {name}= in favour of cmdline=")
            return cmdline
        return " ".join(filter(None, (f"root={root}" if root is not None else None, extra)))

    def _bootloader(self) -> str | None:
        """Wherever this host's Xen would have it, it is pygrub."""
        word = self.string("bootloader")
        if word and word.rpartition("/")[2] != "pygrub":
            value = self._settings["bootloader"].value
            raise value.fail("no other boot loader than pygrub is here", found=repr(word))
        return word or None

    def _bootloader_args(self) -> tuple[str, ...]:
        word = self.string("bootloader_args")
        items = tuple(item.word or "" for item in self.items("bootloader_args"))
        return items if word is None else tuple(word.split())

    def _disks(self) -> tuple[Disk, ...]:
        disks: dict[int, Disk] = {}
        for item in self.items("disk"):
            try:
                disk = parse_disk(item.word or "")
            except BuildError as error:
                raise item.fail(
                    f"disk: {error.reason}", found=error.found, expected=error.expected
                ) from error
            if disk.devid in disks:
                raise self.fail("disk", f"two disks have the same vdev, {disk.vdev}")
            disks[disk.devid] = disk
        return tuple(disks.values())

    def _vifs(self) -> tuple[str, ...]:
        for item in self.items("vif"):
            try:
                parse_vif(item.word or "")
            except BuildError as error:
                raise item.fail(f"vif: {error.reason}", found=error.found, expected=error.expected) from error
        return tuple((item.word or "").strip() for item in self.items("vif"))

    def _vfb(self) -> str | None:
        """The framebuffer of vfb=, or of vnc=1 and the keys that go with it."""
        items = self.items("vfb")
        if not items:
            return self._vfb_of_keys()
        if len(items) > 1:
            raise items[1].fail("vfb: a domain has one framebuffer", found=str(len(items)))
        for name in _VFB_KEYS:
            if name in self._settings:
                self.remark(name, f"{name} has no effect, as with xl, beside vfb=")
        text = items[0].word or ""
        try:
            return vfb_text(parse_vfb(text))
        except BuildError as error:
            raise items[0].fail(f"vfb: {error.reason}", found=error.found, expected=error.expected) from error

    def _vfb_of_keys(self) -> str | None:
        has_vnc = self.number("vnc", _LONG)
        given = [name for name in _VFB_KEYS if name in self._settings and name != "vnc"]
        if not has_vnc:
            for name in given:
                self.remark(name, f"{name} has no effect, as with xl, without vnc=1")
            return None
        words = []
        for name in given:
            value = self._settings[name].value
            words.append(f"{name}={value.word}")
            try:
                parse_vfb(words[-1])
            except BuildError as error:
                raise value.fail(error.reason, found=error.found, expected=error.expected) from error
        return vfb_text(parse_vfb(",".join(words)))

    def _uuid(self) -> str | None:
        """libxl_uuid_from_string(): 32 digits, hyphens between them or not."""
        word = self.string("uuid")
        if word is None:
            return None
        if not re.fullmatch(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){4}[0-9a-fA-F]{8}", word):
            raise self._settings["uuid"].value.fail("Failed to parse UUID", found=repr(word))
        return str(uuid.UUID(word))

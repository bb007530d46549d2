"""A device as `name=value, name=value`: what xl's syntaxes of interfaces and framebuffers have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from domainbuilder.errors import BuildError, Where

Check = tuple[Callable[[str], bool], str]  # whether a value can be, and what is expected


class DeviceSettings:
    """The settings of `text`, which describes a device of this `kind`.

    `checks` are those that there are, `idle` the names of those that are taken and have no effect.
    """

    def __init__(self, kind: str, text: str, checks: Mapping[str, Check], idle: Collection[str]) -> None:
        self._where = Where(f"{kind} {text!r}")
        self._text = text
        self._checks = checks
        self._idle = idle

    def fail(self, reason: str, found: str, expected: str | None = None) -> BuildError:
        """An error that names the device."""
        return BuildError(reason, where=self._where, found=found, expected=expected)

    def chosen(self, refuse: Callable[[str, str, str], None]) -> dict[str, str]:
        """Those that have an effect. Raises BuildError, with the word that is wrong.

        `refuse` is asked first, with the name, the value, and the two as they stand: it raises, or does not.
        """
        chosen: dict[str, str] = {}
        for part in filter(None, map(str.strip, self._text.split(","))):
            name, equals, value = map(str.strip, part.partition("="))
            refuse(name, value, part)
            if name in self._idle:
                continue
            if not equals or name not in self._checks:
                expected = ", ".join(f"{known}=" for known in self._checks)
                raise self.fail("unrecognized argument", part, expected)
            is_right, expected = self._checks[name]
            if not is_right(value):
                raise self.fail(f"invalid {name}", value, expected)
            chosen[name] = value
        return chosen

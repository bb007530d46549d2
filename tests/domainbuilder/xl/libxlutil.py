"""Debian's libxlutil, which reads xl's configuration files, by ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from tests.needs import missing

Settings = dict[str, Any]


class Libxlutil:
    """xlu_cfg_readdata(), and what it found for each name that is asked for."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/x86_64-linux-gnu").glob("libxlutil.so.4.*"))
        if not found:
            missing(
                "Debian's libxenmisc (libxlutil) is not installed: see tests/domainbuilder/apt-packages.txt"
            )
        self.xlu = ctypes.CDLL(str(found[0]))
        self.libc = ctypes.CDLL(None)
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        for library, name, result, arguments in (
            (self.libc, "fopen", pointer, (text, text)),
            (self.libc, "fclose", number, (pointer,)),
            (self.xlu, "xlu_cfg_init", pointer, (pointer, text)),
            (self.xlu, "xlu_cfg_readdata", number, (pointer, text, number)),
            (self.xlu, "xlu_cfg_destroy", None, (pointer,)),
            (self.xlu, "xlu_cfg_get_string", number, (pointer, text, pointer, number)),
            (self.xlu, "xlu_cfg_get_list", number, (pointer, text, pointer, pointer, number)),
            (self.xlu, "xlu_cfg_get_listitem2", pointer, (pointer, number)),
            (self.xlu, "xlu_cfg_value_get_string", number, (pointer, pointer, pointer, number)),
            (self.xlu, "xlu_cfg_value_get_list", number, (pointer, pointer, pointer, number)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    def read(self, text: str, names: set[str]) -> Settings | None:
        """The values of those of the names that are set, lists as lists; None where it is refused."""
        silent = self.libc.fopen(b"/dev/null", b"w")
        config = self.xlu.xlu_cfg_init(silent, b"configuration")
        try:
            data = text.encode()
            if self.xlu.xlu_cfg_readdata(config, data, len(data)):
                return None
            return {name: value for name in names if (value := self._value(config, name)) is not None}
        finally:
            self.xlu.xlu_cfg_destroy(config)
            self.libc.fclose(silent)

    def _value(self, config: int, name: str) -> Any:
        word, items, count = ctypes.c_char_p(), ctypes.c_void_p(), ctypes.c_int()
        if not self.xlu.xlu_cfg_get_string(config, name.encode(), ctypes.byref(word), 1):
            return (word.value or b"").decode("utf-8", "surrogateescape")
        if self.xlu.xlu_cfg_get_list(config, name.encode(), ctypes.byref(items), ctypes.byref(count), 1):
            return None
        return self._items(config, items)

    def _items(self, config: int, items: ctypes.c_void_p) -> list[Any]:
        found: list[Any] = []
        while item := self.xlu.xlu_cfg_get_listitem2(items, len(found)):
            word, inner = ctypes.c_char_p(), ctypes.c_void_p()
            if not self.xlu.xlu_cfg_value_get_string(config, item, ctypes.byref(word), 1):
                found.append((word.value or b"").decode("utf-8", "surrogateescape"))
            else:
                self.xlu.xlu_cfg_value_get_list(config, item, ctypes.byref(inner), 1)
                found.append(self._items(config, inner))
        return found

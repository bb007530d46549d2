"""The build backend: setuptools, and the compiled core (hvcore/cpu/core) as a library for ctypes.

It is compiled by scripts/compile_core.py; a machine without a C compiler gets the ziglang wheel for the
build. Where that is not to be had either, or with HVCORE_WITHOUT_CORE=1, the package is built without the
library, is then the same for every platform, and runs on Python alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.build_meta import get_requires_for_build_editable as _editable_requires
from setuptools.build_meta import get_requires_for_build_wheel as _wheel_requires
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))
from compile_core import compile_core, compiler, is_wanted, other_machine

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ZIG = "ziglang==0.17.1"
TYPER = "typer>=0.15,<0.29"  # as pyproject.toml has it


def _requires(before: list[str]) -> list[str]:
    return [*before, ZIG] if is_wanted() and compiler() is None else before


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What setuptools wants, Typer for the man pages, and a compiler where there is none."""
    return [*_requires(_wheel_requires(config_settings)), TYPER]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for `pip install -e`."""
    return _requires(_editable_requires(config_settings))


class BuildCore(build_ext):
    """Compiles the one library there is; a compiler that fails leaves a package without it, and says so."""

    def get_ext_filename(self, fullname: str) -> str:
        """No suffix of a Python: the library is for all of them."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile, in place for an editable install."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # a build folder may hold an older one
        command = compiler()
        if command is None:
            raise RuntimeError("no C compiler (cc, gcc, clang, or the ziglang package)")
        compile_core(target, command)

    def run(self) -> None:
        """As setuptools does, but without the library rather than not at all."""
        try:
            super().run()
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the compiled core is left out, guests will run on Python alone: {error}")
            self.extensions = []


class CoreWheel(bdist_wheel):
    """A library for ctypes is bound to the platform and to no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-PLATFORM, or py3-none-any without the library."""
        python, abi, plat = super().get_tag()
        if machine := other_machine():
            plat = f"manylinux_2_17_{machine}.manylinux2014_{machine}"
        return (python, abi, plat) if self.root_is_pure else ("py3", "none", plat)


class CoreDistribution(Distribution):
    """Has the extension where it can be compiled."""

    def has_ext_modules(self) -> bool:
        """Whether there is a library: it decides between a wheel for a platform and one for all."""
        return bool(self.ext_modules) and compiler() is not None


EXTENSIONS = [Extension("hvcore.cpu._core", sources=[])] if is_wanted() else []

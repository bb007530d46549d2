"""From a kernel file to a Xen PV domain, and the domain running, on a machine without Xen.

The four steps, each a function that returns a frozen value (`launch` returns a running domain):

    >>> import domainbuilder
    >>> report = domainbuilder.inspect("vmlinuz")
    >>> plan = domainbuilder.plan("vmlinuz", memory_mib=256)
    >>> image = domainbuilder.build("vmlinuz", memory_mib=256)
    >>> with domainbuilder.launch("vmlinuz", memory_mib=256) as dom:
    ...     dom.console.expect("login:")

They are imported when first used: `import domainbuilder` alone costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domainbuilder.build.domain_image import build
    from domainbuilder.kernel.inspection import inspect
    from domainbuilder.launch.domain import launch
    from domainbuilder.plan.domain_plan import plan

__version__ = "0.1.0"

__all__ = ["__version__", "build", "inspect", "launch", "plan"]

_HOMES = {
    "inspect": "kernel.inspection",
    "plan": "plan.domain_plan",
    "build": "build.domain_image",
    "launch": "launch.domain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'domainbuilder' has no attribute {name!r}")
    return getattr(import_module(f"domainbuilder.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """Keeps `domainbuilder.build` the function: importing the submodule of that name would hide it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

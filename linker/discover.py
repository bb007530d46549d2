"""Finds the configuration that applies, without loading what reads it when there is none."""

from __future__ import annotations

import os

from .settings import DEFAULTS, Settings

_MARK = b"[tool.domainbuilder.layout"


def find_config(start: str) -> str | None:
    """Return the nearest layout.toml, or pyproject.toml with our table, at or above a directory."""
    directory = os.path.abspath(start)  # noqa: PTH100 (pathlib is not loaded for this)
    while True:
        own = os.path.join(directory, "layout.toml")  # noqa: PTH118
        if os.path.isfile(own):  # noqa: PTH113
            return own
        project = os.path.join(directory, "pyproject.toml")  # noqa: PTH118
        if os.path.isfile(project) and _mentions(project):  # noqa: PTH113
            return project
        parent = os.path.dirname(directory)  # noqa: PTH120
        if parent == directory:
            return None
        directory = parent


def _mentions(path: str) -> bool:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            return _MARK in stream.read(4 << 20)
    except OSError:
        return False


def settings_for(directory: str, config: str | None = None) -> Settings:
    """Return the settings of a named file, of the nearest one, or the defaults. Raises LayoutInputError."""
    path = config or find_config(directory)
    if path is None:
        return DEFAULTS
    from .config import read_config

    return read_config(path)

"""A file system in memory, for configurations that need no disk."""

from __future__ import annotations

from collections.abc import Mapping


class Files:
    """Files by absolute path."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def read(self, path: str, limit: int) -> bytes:
        """A whole file. Raises FileNotFoundError where there is none."""
        if path not in self._files:
            raise FileNotFoundError(path)
        data = self._files[path].encode()
        assert len(data) <= limit
        return data

    def listdir(self, path: str) -> list[str]:
        """The names in a directory. Raises FileNotFoundError where there is none."""
        inside = {name[len(path) + 1 :].split("/")[0] for name in self._files if name.startswith(f"{path}/")}
        if not inside:
            raise FileNotFoundError(path)
        return sorted(inside)

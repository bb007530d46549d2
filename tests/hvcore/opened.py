"""The processors that benches have opened, so that each is closed when its test is over.

A processor holds 3 MB outside of Python, which nobody gives back for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hvcore.cpu.engine import Engine
from hvcore.machine_memory import MachineMemory

_opened: list[tuple[Engine, MachineMemory]] = []


def note(engine: Engine, memory: MachineMemory) -> None:
    """A bench has opened `engine` over `memory`."""
    _opened.append((engine, memory))


def forget() -> None:
    """Leave all that were opened to whoever else holds them."""
    _opened.clear()


@contextmanager
def closing() -> Iterator[None]:
    """Close what was opened within the block."""
    before = len(_opened)
    try:
        yield
    finally:
        while len(_opened) > before:
            engine, memory = _opened.pop()
            engine.close()
            memory.release()

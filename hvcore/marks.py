"""Going back within a process: a host as it was at a mark, put back in place, object by object.

Everything that keeps state is found from the host by following what refers to what, so that nothing can be
forgotten: fields, lists, dictionaries, arrays, the words that the compiled core shares. Each has its own
contents noted, and given back; who refers to whom comes out right by that, since no object is replaced.
Memory is page_marks.py's. The processor is told by its own means: what it has translated stays, unless it
was translated from a page that changes.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from operator import attrgetter
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from hvcore.cpu.engine import Engine, EngineContext
from hvcore.cpu.words import OF_THE_PROCESS
from hvcore.page_marks import MarkedPages, PageMark, Run
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from hvcore.cpu.exits import Handlers
    from hvcore.machine_memory import MachineMemory

Undo = Callable[[], object]
_ATOMS = (int, str, bytes, float, type(None), type, Enum, mmap.mmap)
_UNDO_BYTES = 200
_OURS, _ONLOOKERS = "hvcore.", "hvcore.debug."


class Mark:
    """A host as it stood, of which `root` holds everything; the domain on the processor has `handlers`."""

    def __init__(
        self,
        root: object,
        engine: Engine,
        memory: MachineMemory,
        pages: MarkedPages,
        handlers: Handlers | None,
    ) -> None:
        self._engine, self._memory, self._pages = engine, memory, pages
        self._handlers = handlers
        self._context: EngineContext = engine.save_context()
        elsewhere = {id(memory.buffer), id(engine.window.bytes.obj)}
        self._objects = _undo_all([root, engine.words], [engine, pages], elsewhere)
        self._size = sum(map(_held, self._objects))
        self._mark: PageMark = pages.set_mark()

    @property
    def size(self) -> int:
        """What it takes beside the copies of pages (MarkedPages.size), in bytes."""
        return self._size

    def go_back(self) -> None:
        """Put everything back to what it was."""
        engine = self._engine
        runs = self._pages.written(self._mark)
        if runs is None:
            engine.flush_code()
        else:
            self._drop_code(runs)
        self._pages.go_back(self._mark, runs)
        engine.load_context(self._context)
        of_process = [(name, getattr(engine.words, name)) for name in OF_THE_PROCESS]
        for undo in self._objects:
            undo()
        for name, value in of_process:
            setattr(engine.words, name, value)
        engine.arm_watches()
        if self._handlers is not None:
            engine.set_handlers(self._handlers)

    def _drop_code(self, runs: list[Run]) -> None:
        """What was translated from pages that go back to other contents."""
        engine, mark, view = self._engine, self._mark, self._memory.view
        base, known = self._memory.base_mfn << PAGE_SHIFT, engine.code_pages.known
        holds_code = engine.code_pages.holds_code
        for start, end in runs:
            for at in range(start, end, 1 << PAGE_SHIFT):
                if known and not holds_code(at >> PAGE_SHIFT):
                    continue
                if bytes(view[at : at + 4096]) != bytes(mark.content(at)):
                    engine.flush_code(base + at, base + at + 4096)


def _held(undo: Undo) -> int:
    """About how many bytes it keeps."""
    arguments = undo.args if isinstance(undo, partial) else ()
    return _UNDO_BYTES + sum(
        sys.getsizeof(one) for one in arguments if isinstance(one, bytes | bytearray | array)
    )


def _undo_all(roots: list[object], but: list[object], elsewhere: set[int]) -> list[Undo]:
    """What puts everything that keeps state and is reached from the roots back to what it is now.

    Nothing is looked for in `but`; views of `elsewhere` are of what is put back otherwise.
    """
    found: dict[int, object] = {id(thing): thing for thing in but}
    undo: list[Undo] = []
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, _ATOMS) or id(thing) in found:
            continue
        found[id(thing)] = thing
        waiting += _referred(thing)
        undo += _undo(thing, elsewhere)
    return undo


def _referred(thing: object) -> Iterator[object]:
    """What may keep state, too."""
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    elif isinstance(thing, MethodType):
        yield thing.__self__
    elif isinstance(thing, partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # an empty one
                yield cell.cell_contents
    elif _is_ours(thing):
        yield from getattr(thing, "__dict__", {}).values()
        yield from (getattr(thing, name) for name in _slots(thing))


def _is_ours(thing: object) -> bool:
    """Whether its fields are looked at: not the engine's, which is saved, nor those of onlookers."""
    module = type(thing).__module__
    return module.startswith(_OURS) and not module.startswith(_ONLOOKERS) and not isinstance(thing, Engine)


def _slots(thing: object) -> tuple[str, ...]:
    """The names of the slots that have something in them."""
    names: list[str] = []
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += (slots,) if isinstance(slots, str) else slots
    return tuple(name for name in names if not name.startswith("__") and hasattr(thing, name))


def _undo(thing: object, elsewhere: set[int]) -> Iterator[Undo]:
    """What gives one object its contents back."""
    if isinstance(thing, memoryview):
        if id(thing.obj) not in elsewhere and not thing.readonly:
            yield partial(thing.cast("B").__setitem__, slice(None), bytes(thing))
    elif isinstance(thing, array | bytearray):
        yield partial(thing.__setitem__, slice(None), thing[:])
    elif isinstance(thing, list):
        yield partial(thing.__setitem__, slice(None), thing.copy())
    elif isinstance(thing, dict | set):
        yield thing.clear
        if thing:
            yield partial(thing.update, thing.copy())
    elif isinstance(thing, deque):
        yield thing.clear
        if thing:
            yield partial(thing.extend, list(thing))
    elif isinstance(thing, ctypes.Structure | ctypes.Array):
        words = memoryview(thing).cast("B")
        yield partial(words.__setitem__, slice(None), bytes(words))
    if _is_ours(thing):
        yield from _undo_fields(thing)


def _undo_fields(thing: object) -> Iterator[Undo]:
    fields: dict[str, Any] | None = getattr(thing, "__dict__", None)
    if fields:
        yield partial(fields.update, fields.copy())
    names = _slots(thing)
    if len(names) == 1:
        yield partial(setattr, thing, names[0], getattr(thing, names[0]))
    elif names and not isinstance(thing, tuple):
        yield partial(_give_back, thing, names, attrgetter(*names), attrgetter(*names)(thing))


def _give_back(thing: object, names: tuple[str, ...], now: Callable[[object], Any], before: Any) -> None:
    """Set those of the fields that refer to something else than before."""
    if any(map(_is_not, now(thing), before)):
        for name, value in zip(names, before, strict=True):
            setattr(thing, name, value)


def _is_not(one: object, other: object) -> bool:
    return one is not other

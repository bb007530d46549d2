"""`launch --coverage`: which of a kernel's code runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError
from domainbuilder.output import write_whole
from domainbuilder.profile.coverage import Covered, coverage_encoder_of, lcov

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain


@contextmanager
def covered(dom: RunningDomain, path: str | os.PathLike[str]) -> Iterator[None]:
    """Write which blocks of the kernel run in the block, however that ends: drcov, or lcov by its lines.

    Raises BuildError where lcov is asked for and there are no lines, before anything runs; OSError.
    """
    encode = coverage_encoder_of(path)
    plan = dom.plan
    if plan is None:
        raise BuildError("where the kernel of a restored domain lies is not known: no coverage of it")
    names = dom.names()
    start, end = plan.parms.virt_kstart, plan.parms.virt_kend

    def found(blocks: list[tuple[int, int]]) -> Covered:
        return Covered(plan.kernel, start, end, plan.parms.virt_entry, blocks, names.symbols)

    if encode is lcov:
        lcov(found([]))
    with dom.machine.engine.covering(start, end) as coverage:
        try:
            yield
        finally:
            if coverage.dropped:
                sys.stderr.write("domainbuilder: the coverage is not complete: there are too many blocks\n")
            write_whole(path, encode(found(coverage.blocks())))

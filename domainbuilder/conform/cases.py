"""Many conformance guests: one after the other, or as cases of a fleet, with equal results in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from domainbuilder.conform.run import (
    DEFAULT_TIMEOUT,
    MEMORY_MIB,
    VCPUS,
    ConformanceGuest,
    Result,
    result_of,
    run,
)
from domainbuilder.fleet import Case, Configuration, Kernel, Matrix, Script
from domainbuilder.fleet import Result as Ended
from domainbuilder.fleet import run as run_matrix
from domainbuilder.launch.session import Outcome

_CONFIGURATION = Configuration(f"{MEMORY_MIB}MB-{VCPUS}cpu", MEMORY_MIB, VCPUS)
_SCRIPT = Script("conform", end="any", keeps_console=True)


def run_all(
    tests: Sequence[ConformanceGuest],
    timeout: float = DEFAULT_TIMEOUT,
    tell: Callable[[Result], None] = lambda _r: None,
    jobs: int = 1,
) -> list[Result]:
    """Every test, one in turn or `jobs` at a time; `tell` hears of each in its order, as soon as it is there.

    Raises BuildError where a kernel is not to be launched.
    """
    if min(jobs, len(tests)) > 1:
        return _run_cases(tests, timeout, tell, min(jobs, len(tests)))
    results = []
    for test in tests:
        results.append(run(test, timeout))
        tell(results[-1])
    return results


def _run_cases(
    tests: Sequence[ConformanceGuest], timeout: float, tell: Callable[[Result], None], jobs: int
) -> list[Result]:
    digests = {test.name: hashlib.sha256(test.kernel.read_bytes()).hexdigest() for test in tests}
    cases = {test.name: _case(test, digests[test.name], timeout) for test in tests}
    by_case = {cases[test.name].name: test for test in tests}
    results: dict[str, Result] = {}
    waiting = list(tests)

    def heard(ended: Ended) -> None:
        test = by_case[ended.name]
        results[test.name] = _result(test, ended, timeout)
        while waiting and waiting[0].name in results:
            tell(results[waiting.pop(0).name])

    files = {digests[test.name]: test.kernel for test in tests}
    run_matrix(Matrix(tuple(cases.values()), files), workers=jobs, tell=heard)
    return [results[test.name] for test in tests]


def _case(test: ConformanceGuest, digest: str, timeout: float) -> Case:
    return Case(Kernel(test.name, digest), _CONFIGURATION, _SCRIPT, seed=0, timeout=timeout)


def _result(test: ConformanceGuest, ended: Ended, timeout: float) -> Result:
    """What came of it. Raises BuildError where its kernel is not to be launched, with its own name."""
    if ended.outcome == "error":
        return run(test, timeout)
    outcome = Outcome(ended.outcome, ended.detail)
    return result_of(
        test, ended.console, outcome, ended.hypercalls, guest_ns=ended.guest_ns, wall=ended.wall_seconds
    )

"""Cases on an executor: results in the order of the cases, each counted once, whatever is lost on the way.

An executor's worker has a process for the guests of each of its threads (worker.py), so that Unicorn and what
a cluster is made of are never in one process. A case whose process was lost is tried again elsewhere.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

from domainbuilder.clones.values import from_plain, to_plain
from domainbuilder.fleet.matrix import Matrix
from domainbuilder.fleet.values import Case, Result
from domainbuilder.fleet.worker import Worker, WorkerLost

RETRIES = 3
_AHEAD = 2  # cases that wait at a worker, for each that it runs


class _Submits(Protocol):
    """As much of an executor as is asked of it: concurrent.futures', dask.distributed's and others'."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Have it called."""


def run(
    matrix: Matrix,
    executor: _Submits | None = None,
    *,
    workers: int | None = None,
    retries: int = RETRIES,
    tell: Callable[[Result], None] = lambda _result: None,
    contents: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Run all cases; their results in the order of the cases.

    executor: where; None: a thread with a process for each of `workers`, or for each core. retries: how often
    a case whose process was lost is tried again; then it has failed. tell: is told each result as it comes.
    contents: the inputs by their digests, as the executor's workers get them (bytes, or futures of these);
    None: they are read from the matrix's files. Raises OSError.
    """
    if contents is None:
        contents = read_contents(matrix)
    if executor is not None:
        return _run(matrix.cases, executor, workers or os.cpu_count() or 1, retries, tell, contents)
    count = workers or len(os.sched_getaffinity(0))
    with _local(count) as pool:
        return _run(matrix.cases, pool, count, retries, tell, contents)


def read_contents(matrix: Matrix) -> dict[str, bytes]:
    """The inputs by their digests. Raises BuildError where a file has changed meanwhile, OSError."""
    import hashlib

    from domainbuilder.errors import BuildError, Where

    contents = {}
    for digest, path in matrix.files.items():
        contents[digest] = path.read_bytes()
        if hashlib.sha256(contents[digest]).hexdigest() != digest:
            raise BuildError("the file has changed meanwhile", where=Where(str(path)))
    return contents


@contextmanager
def _local(count: int) -> Any:
    pool: Executor = ThreadPoolExecutor(count, thread_name_prefix="fleet")
    try:
        yield pool
    finally:
        close_workers()  # those that still run: what they run is wanted no more
        pool.shutdown(cancel_futures=True)
        close_workers()


def _run(
    cases: Iterable[Case],
    executor: _Submits,
    workers: int,
    retries: int,
    tell: Callable[[Result], None],
    contents: Mapping[str, Any],
) -> list[Result]:
    """Keep every worker busy, and no more cases on their way than that takes."""
    results: dict[str, Result] = {}
    tries: dict[str, int] = {}
    waiting = iter(cases)
    again: list[Case] = []
    running: dict[Future[Any], Case] = {}
    while True:
        while len(running) < workers * (1 + _AHEAD):
            case = again.pop() if again else next(waiting, None)
            if case is None:
                break
            tries[case.name] = tries.get(case.name, 0) + 1
            inputs = [contents[digest] for digest in case.inputs]
            running[executor.submit(run_case, to_plain(case), *inputs)] = case
        if not running:
            return [results[name] for name in tries]
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            case = running.pop(future)
            result = _result(future, case, tries[case.name])
            if result is None and tries[case.name] <= retries:
                again.append(case)
            elif case.name not in results:
                results[case.name] = result or _lost(case, tries[case.name])
                tell(results[case.name])


def _result(future: Future[Any], case: Case, attempt: int) -> Result | None:
    """What came of it; None where its process was lost, here or with the worker of a cluster."""
    try:
        plain = future.result()
    except (WorkerLost, EOFError, ConnectionError):
        return None
    except Exception as error:
        if type(error).__name__ in _LOST:
            return None
        raise
    result = from_plain(Result, plain)
    if result.name != case.name:
        raise RuntimeError(f"a result of {result.name} for {case.name}")
    return replace(result, attempts=attempt)


_LOST = {"KilledWorker", "BrokenProcessPool", "BrokenExecutor", "CancelledError", "FutureCancelledError"}


def _lost(case: Case, tries: int) -> Result:
    return Result(
        case.name, case.group, passed=False, outcome="error",
        detail=f"the process that ran it was lost, {tries} times", attempts=tries,
    )  # fmt: skip


# --- at the executor's worker -------------------------------------------------------------------------------

_LOCAL = threading.local()
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def run_case(plain: Any, *inputs: bytes) -> Any:
    """Run a case in this thread's process. Raises WorkerLost."""
    case = from_plain(Case, plain)
    worker: Worker | None = getattr(_LOCAL, "worker", None)
    if worker is None or worker.closed:
        worker = _LOCAL.worker = Worker()
        _WORKERS.add(worker)
    try:
        return to_plain(worker.run(case, dict(zip(case.inputs, inputs, strict=True))))
    except WorkerLost:
        _WORKERS.discard(worker)
        raise


def close_workers() -> None:
    """End the processes of this process's threads; whoever has another case begins anew."""
    for worker in list(_WORKERS):
        with suppress(OSError):
            worker.close()
        _WORKERS.discard(worker)

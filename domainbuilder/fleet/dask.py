"""A dask.distributed cluster as a fleet's executor: the extra `fleet`.

Inputs are scattered by their contents: the cluster has each of them once, and every worker fetches it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from domainbuilder.errors import BuildError
from domainbuilder.fleet.executing import RETRIES, read_contents, run
from domainbuilder.fleet.matrix import Matrix
from domainbuilder.fleet.values import Result


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """A client of the cluster at `address`; of one on this machine, for as long as the block lasts.

    Raises BuildError where dask.distributed is not installed, or the cluster is not there.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        message = "--executor dask needs dask.distributed: pip install 'domainbuilder[fleet]'"
        raise BuildError(f"{message} ({error})") from None
    try:
        if address is None:
            with (
                LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers, threads_per_worker=1, dashboard_address=None
                ) as local,
                Client(local) as client,  # type: ignore[no-untyped-call]
            ):
                yield client
        else:
            with Client(address, timeout=10) as client:  # type: ignore[no-untyped-call]
                yield client
    except (OSError, TimeoutError, ValueError) as error:
        raise BuildError(f"the cluster at {address or 'this machine'}: {error}") from error


def run_on(
    client: Any, matrix: Matrix, *, retries: int = RETRIES, tell: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """`fleet.run` on the cluster of a dask.distributed client."""
    contents = {
        digest: client.scatter(data, hash=True, broadcast=False)
        for digest, data in read_contents(matrix).items()
    }
    threads = sum(client.nthreads().values())
    executor = client.get_executor(pure=False)
    return run(matrix, executor, workers=max(threads, 1), retries=retries, tell=tell, contents=contents)

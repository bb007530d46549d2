"""Many runs: a matrix of kernels, configurations, scripts and seeds, on all cores or on many machines.

    from domainbuilder import fleet

    matrix = fleet.read_matrix("matrix.toml")
    results = fleet.run(matrix)
    assert all(result.passed for result in results)

`run` takes any executor that has `submit()` as concurrent.futures has it. The guests never run in the
process that calls it, nor in one of the executor's: each thread of work has a process of its own for them.
"""

from domainbuilder.fleet.executing import run
from domainbuilder.fleet.matrix import Matrix, read_matrix
from domainbuilder.fleet.values import Case, Configuration, Kernel, Result, Script, Step

__all__ = [
    "Case",
    "Configuration",
    "Kernel",
    "Matrix",
    "Result",
    "Script",
    "Step",
    "read_matrix",
    "run",
]

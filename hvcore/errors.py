"""The ways a guest's act can end other than well, or not yet; all carry values and format late."""

from __future__ import annotations


class GuestError(Exception):
    """A hypercall fails with `-errno`; caught only by the hypercall dispatcher."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class GuestFault(Exception):
    """The guest is to see an x86 exception; caught only by the trap code."""

    def __init__(self, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
        super().__init__(vector, error_code, cr2)
        self.vector = vector
        self.error_code = error_code
        self.cr2 = cr2


class HypercallPreempted(Exception):
    """A hypercall has used up the vCPU's turn: it is to be made again, with `arguments`, to do the rest.

    hypercall_create_continuation(); caught only by the hypercall dispatcher and by multicall.
    """

    def __init__(self, *arguments: int) -> None:
        super().__init__(arguments)
        self.arguments = arguments


class DomainCrash(Exception):
    """Xen would call domain_crash(): the run ends with a report, not with a traceback.

    `vector` and `error_code` are those of an exception that nobody took, `address` is the one that could not
    be accessed.
    """

    def __init__(
        self,
        reason: str,
        *,
        vector: int | None = None,
        error_code: int | None = None,
        address: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.vector = vector
        self.error_code = error_code
        self.address = address


class EngineError(Exception):
    """The engine itself failed: a state the hypervisor must never leave the guest in."""


class StateError(EngineError):
    """A saved state that no host can have: which value, what was found there, what was expected."""

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(f"{name}: found {found}, expected {expected}")
        self.name = name
        self.found = found
        self.expected = expected

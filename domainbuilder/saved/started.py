"""A domain from a file or a stream, ready to go on: its values become a RunningDomain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domainbuilder.errors import BuildError, SavedError, Where
from domainbuilder.launch.running import RunningDomain
from domainbuilder.launch.start import Start
from hvcore.errors import EngineError, StateError

if TYPE_CHECKING:
    from domainbuilder.launch.options import Chosen
    from domainbuilder.saved.stream_restore import Restorer


def received(restorer: Restorer, started: float, options: Chosen) -> RunningDomain:
    """The domain that a stream was of."""
    start = Start(
        lambda: None, lambda output: restorer.finish(output, plain=options.plain), no_record, is_trusted=False
    )
    return running(start, restorer.name, started, options)


def no_record() -> dict[str, Any]:
    """What a record would be of. Raises BuildError."""
    raise BuildError("a run that begins with a saved domain cannot be recorded")


def running(start: Start, name: str, started: float, options: Chosen) -> RunningDomain:
    """The domain, of a file or stream called `name`. Raises SavedError where there is no such domain."""
    symbols = None
    if options.symbols is not None:
        from domainbuilder.symbols.read import read_symbols

        symbols = read_symbols(options.symbols, None)
    try:
        return RunningDomain(start, options, shares_host=False, started=started, symbols=symbols)
    except StateError as error:
        reason = f"{error.name} is nothing that a domain can have"
        raise SavedError(reason, where=Where(name), found=error.found, expected=error.expected) from None
    except EngineError as error:
        raise SavedError(f"no such domain can be made: {error}", where=Where(name)) from None
    except OSError as error:
        where = Where(error.filename) if error.filename else Where(name)
        raise SavedError(str(error.strerror or error), where=where) from None
    except (ValueError, OverflowError, LookupError) as error:
        raise SavedError(f"no such domain can be made here: {error}", where=Where(name)) from None

"""Ask a guest to suspend, as xl does, and let it go on where that came to nothing.

Source: libxl__domain_suspend() in tools/libs/light/libxl_dom_suspend.c, xc_domain_resume() in
tools/libs/guest/xg_resume.c of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainbuilder.errors import SavedError
from domainbuilder.saved.p2m import check_has_p2m

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.backends.xenstore import XenstoreBackend

ACKNOWLEDGE_SECONDS = 60.0  # of the guest's time, as libxl waits of its own
_REQUEST, _SUSPEND = "control/shutdown", "suspend"


def suspend(dom: RunningDomain, timeout: float | None = None) -> None:
    """Have the guest suspend: xenstore's control/shutdown says so, and it calls SCHEDOP_shutdown.

    `timeout` is in seconds of wall time. Raises SavedError where it does not; unless it ended it
    can go on. One without a p2m list cannot be saved, and is not asked.
    """
    check_has_p2m(dom.machine)
    store = dom.machine.xenstore
    store.write(_REQUEST, _SUSPEND)
    outcome = dom.run_for(ACKNOWLEDGE_SECONDS, timeout)
    if outcome is not None and outcome.reason == _SUSPEND:
        return
    if outcome is not None and outcome.ended:
        raise SavedError(f"the guest was asked to suspend, and ended: {outcome}")
    acknowledged = store.read(_REQUEST) != _SUSPEND
    store.write(_REQUEST, "")
    what = "has not suspended" if acknowledged else "didn't acknowledge suspend request"
    why = f"within {ACKNOWLEDGE_SECONDS:.0f} s of its time" if outcome is None else str(outcome)
    if not acknowledged and not _is_watched(store, _REQUEST):
        why += (
            "; it watches no control/shutdown in xenstore, so xl cannot save it either; "
            "it can be saved as it stands, in the frozen form"
        )
    raise SavedError(f"guest {what}: {why}")


def _is_watched(store: XenstoreBackend, path: str) -> bool:
    """Whether the guest wants to be told of a node in its home: GRUB and small kernels do not."""
    node = f"{store.home}/{path}"
    return any(f"{node}/".startswith(f"{watch.node.rstrip('/')}/") for watch in store.watches)

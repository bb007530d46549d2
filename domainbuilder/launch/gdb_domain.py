"""A domain that GDB has: its debugger, its past, and what `monitor` says of it, from attach to detach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from domainbuilder.inputs import is_elf
from domainbuilder.launch.gdb_monitor import Monitor
from hvcore.debug.debugger import Debugger, Stopped
from hvcore.debug.gdb.process import Process
from hvcore.debug.timeline import Timeline
from hvcore.machine import Stop

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.debug.gdb.stub import Resume

_POLL_STEPS = 64


def kernel_file(dom: RunningDomain) -> str | None:
    """The kernel's file as GDB can read it, where it can."""
    return str(Path(dom.plan.kernel).resolve()) if dom.plan is not None and is_elf(dom.plan.kernel) else None


class GdbDomain:
    """`poll` is called now and then during steps that take long: whether they are to end.

    `over` is how the domain ended, while GDB looks at what is left of it.
    """

    def __init__(self, dom: RunningDomain, *, goes_back: bool, poll: Callable[[], bool]) -> None:
        self.dom, self.machine = dom, dom.machine
        self.over: Stopped | None = None
        self._poll = poll
        self.debugger = Debugger(dom.machine, self._run)
        self.timeline = Timeline(self.debugger, went_back=dom.went_back) if goes_back else None
        self.monitor = Monitor(dom, self._moved)
        self.monitor.timeline = self.timeline
        self.process = Process(
            self.debugger,
            exec_file=kernel_file(dom),
            monitor=self.monitor,
            written=self.timeline.changed if self.timeline is not None else lambda: None,
        )
        self.monitor.process = self.process

    def close(self) -> None:
        """GDB has it no more: nothing of it is left, and the domain can go on."""
        self.monitor.close()
        self.process.close()
        if self.timeline is not None:
            self.timeline.close()
        self.debugger.close()
        self.machine.is_held = False

    def _run(self) -> Stop:
        """Machine.run(), but for what happens to other domains of the host, which GDB may have, too."""
        machine = self.machine
        if not machine.is_over:
            ended, stop = machine.host.run()
            if ended is not machine:
                return stop if ended is None else Stop.PAUSED
        return Stop.CRASHED if machine.crash is not None else Stop.SHUTDOWN

    def go(self, resume: Resume) -> Stopped:
        """Go on as GDB said, forward; "paused" where something else has to be looked at."""
        debugger = self.debugger
        if resume.vcpu is None:
            return debugger.go()
        for count in range(1 << 62):
            stopped = debugger.step(resume.vcpu)
            if stopped.reason != "step" or not resume.start <= stopped.rip < resume.end:
                break
            point = debugger.breakpoint_at(stopped.rip)
            if point is not None:
                return Stopped("breakpoint", stopped.vcpu_id, stopped.rip, point)
            if count % _POLL_STEPS == _POLL_STEPS - 1 and self._poll():
                break
        return stopped

    def go_back(self, vcpu: int | None) -> Stopped:
        """Back to the last point that was met, or by an instruction of a vCPU's."""
        assert self.timeline is not None
        self.over = None
        self.monitor.close()  # what is executed again would be heard again
        return self.timeline.continue_back() if vcpu is None else self.timeline.step_back(vcpu)

    def _moved(self, stopped: Stopped) -> None:
        """The domain stands elsewhere in its time, by `monitor restart`."""
        self.process.stop(stopped)
        self.over = None

    @property
    def stop_at_end(self) -> Stopped:
        """Where a domain stands that is over."""
        return self.debugger.stopped_here("crashed" if self.machine.crash is not None else "shutdown")

    @property
    def has_crashed(self) -> bool:
        """Whether it ended as nobody wants a domain to end."""
        return self.machine.crash is not None or self.machine.shutdown_reason == "crash"

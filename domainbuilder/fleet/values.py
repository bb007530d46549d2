"""What a fleet is told to run, and what came of it: frozen values that cross between processes as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a script: "expect" (a regular expression), "send" (a text) or "run" (the guest's seconds)."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with what it is launched with: files by the SHA-256 of their contents.

    `cmdline` may have {seed}. Where there is `until`, every case begins where the console matched that.
    """

    name: str
    kernel: str
    ramdisk: str | None = None
    cmdline: str = ""
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The machine: `memory_mib` None is what the kernel needs."""

    name: str
    memory_mib: int | None = None
    vcpus: int = 1
    upper_ptwr: bool = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """What is typed and expected. Texts may have {seed}.

    `jitter`: before each thing that is typed the guest runs for up to so many seconds of its own time more;
    how many is the seed's. `end`: "match" where the last step is the end, "any" where it is the guest's own
    for whatever reason, else that reason. `keeps_console`: the result has all that was printed.
    """

    name: str
    steps: tuple[Step, ...] = ()
    jitter: float = 0.0
    end: str = "poweroff"
    keeps_console: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a function of all this, and of the contents that the digests name."""

    kernel: Kernel
    configuration: Configuration
    script: Script
    seed: int
    timeout: float | None = None
    max_guest_seconds: float | None = None

    @property
    def name(self) -> str:
        """What it is called in reports; no two cases of a matrix are called the same."""
        return f"{self.group}/{self.seed}"

    @property
    def group(self) -> str:
        """The same without the seed."""
        return f"{self.kernel.name}/{self.configuration.name}/{self.script.name}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The digests of the contents that it needs."""
        kernel = self.kernel
        return (kernel.kernel,) if kernel.ramdisk is None else (kernel.kernel, kernel.ramdisk)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case. `host` fields alone differ from run to run: they are left out of comparisons.

    `outcome` is that of the run (Outcome.reason), "matched", or "error" where it could not be run: `detail`
    says why then, and where any end is right it is Outcome's. `console` has the last lines of what did not
    pass, and the crash report's text, if any; or all that was printed, where the script keeps it.
    """

    name: str
    group: str
    passed: bool
    outcome: str
    detail: str
    console: str = ""
    guest_ns: int = 0
    code_bytes: int = 0
    hypercalls: int = 0
    console_bytes: int = 0
    wall_seconds: float = field(default=0.0, compare=False)
    attempts: int = field(default=1, compare=False)

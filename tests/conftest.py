"""Fixtures shared by every test: the real kernels, and the bundled sample guests."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from domainbuilder import guests
from domainbuilder.conform.run import bundled
from tests.loading import load
from tests.needs import find_tool, may_skip, missing

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup does, and programs inherit
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes is the machine's business.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DOMAINBUILDER_CACHE") or ROOT / ".cache")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """What `launch` keeps it keeps here, and not under the user's own folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips has checked nothing: in CI, which has everything, it fails."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not may_skip(reason):
            report.outcome, report.longrepr = "failed", f"nothing may skip in CI: {reason}"
    return report


@pytest.fixture(scope="session")
def samples_builder() -> Callable[..., ModuleType]:
    """`samples_builder()`: samples/build.py as a module; of a copy of samples/, when given one."""
    return lambda samples=ROOT / "samples": load(samples / "build.py")


@pytest.fixture(scope="session")
def guest_kernel() -> Callable[[str], Path]:
    """`guest_kernel(name)`: the path of a file that `make guests` fetched (names: scripts/guests.py).

    Without it the test fails in CI and skips elsewhere.
    """

    def find(name: str) -> Path:
        path = CACHE / "guests" / name
        if not path.exists():
            missing(f"{name} is not in {path.parent}: run `make guests`")
        return path

    return find


@pytest.fixture(scope="session")
def sample_guest() -> Callable[[str], Path]:
    """`sample_guest(name)`: the path of a sample guest that comes with the package."""
    return guests.path


@pytest.fixture(scope="session")
def conformance_guest(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`conformance_guest("vcpus-64")`: the path of that guest."""
    folder = tmp_path_factory.mktemp("conformance")
    with bundled() as guests:
        for guest in guests:
            (folder / guest.kernel.name).write_bytes(guest.kernel.read_bytes())

    def find(name: str) -> Path:
        path = folder / f"{name}.elf"
        if not path.exists():
            pytest.importorskip("ziglang")
            builder = samples_builder()
            builder.build(tuple(one for one in builder.conformance() if one.name == name), folder)
        return path

    return find


@pytest.fixture(scope="session")
def debug_hello(samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled guest, compiled with -g."""
    builder = samples_builder()
    (path,) = builder.build(builder.BUNDLE, tmp_path_factory.mktemp("debug"), debug=True)
    return Path(path)


@pytest.fixture(scope="session")
def debug_pvkernel(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """samples/pvkernel, compiled with -g."""
    pytest.importorskip("ziglang")
    builder = samples_builder()
    (path,) = builder.build((builder.pvkernel(),), tmp_path_factory.mktemp("debug"), debug=True)
    return Path(path)


@pytest.fixture(scope="session")
def pvkernel(samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """samples/pvkernel with its symbols."""
    pytest.importorskip("ziglang")
    builder, folder = samples_builder(), tmp_path_factory.mktemp("pvkernel")
    sample = builder.pvkernel()
    objects = [builder.compile_object(source, sample.width, folder) for source in sample.sources]
    output = folder / "pvkernel.elf"
    builder.link(builder.Sample("pvkernel", (), script=str(sample.script)), objects, folder, output)
    return output


@pytest.fixture(scope="session")
def guests_by_width(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Path]]:
    """`guests_by_width("suspend")`: those of samples/build.py, built once, by their width: "32", "64"."""

    @cache
    def built(name: str) -> dict[str, Path]:
        pytest.importorskip("ziglang")
        builder = samples_builder()
        samples, _ = builder.OTHERS[name]
        made = builder.build(samples(), tmp_path_factory.mktemp(name))
        return {path.stem.rpartition("-")[2]: path for path in made}

    return built


@pytest.fixture(scope="session")
def suspend_guests(guests_by_width: Callable[[str], dict[str, Path]]) -> dict[str, Path]:
    """samples/suspend by its width."""
    return guests_by_width("suspend")


@pytest.fixture(scope="session")
def hostile_guests(guests_by_width: Callable[[str], dict[str, Path]]) -> dict[str, Path]:
    """samples/hostile by its width."""
    return guests_by_width("hostile")


STATEDUMP_FLAGS = {
    "32": ("-m32", "elf_i386", "entry32.S", "l32.lds", ()),
    "64": ("-m64", "elf_x86_64", "entry64.S", "l64.lds", ("-mcmodel=kernel", "-mno-red-zone")),
}


@pytest.fixture(scope="session")
def statedump(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`statedump("32", linuxlike=True)`: samples/statedump, built as the one that ran under real Xen was.

    With gcc, because the addresses it prints depend on the compiler's layout of data.
    """
    folder = tmp_path_factory.mktemp("statedump")
    sources = ROOT / "samples" / "statedump"

    def build(width: str, *, linuxlike: bool = False) -> Path:
        compiler, linker = find_tool("gcc"), find_tool("ld")
        machine, emulation, entry, script, more = STATEDUMP_FLAGS[width]
        name = f"statedump{width}" + ("-linuxlike" if linuxlike else "")
        define = ["-DLINUXLIKE"] if linuxlike else []
        flags = [machine, "-O2", "-ffreestanding", "-fno-pic", "-fno-stack-protector", *more, *define]
        objects = []
        for source in (entry, "main.c", "notes.S"):
            objects.append(folder / f"{name}-{source}.o")
            subprocess.run([compiler, *flags, "-c", sources / source, "-o", objects[-1]], check=True)
        options = ["-m", emulation, "-z", "max-page-size=4096", "-z", "noexecstack", "--no-warn-rwx-segments"]
        output = folder / name
        subprocess.run([linker, *options, "-T", sources / script, *objects, "-o", output], check=True)
        return output

    return build


RAMDISK_SIZE = 0xB5600  # unzipped; the builder adds 16 (xc_dom_check_gzip), and the guest saw 0xb5610
RAMDISK_START = b"070701002AE9B900"  # a cpio archive's first bytes, all that was printed of it


@pytest.fixture(scope="session")
def statedump_ramdisk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gzipped ramdisk of the size and with the first 16 bytes of the one that real Xen was given."""
    path = tmp_path_factory.mktemp("ramdisk") / "initrd.gz"
    path.write_bytes(gzip.compress(RAMDISK_START.ljust(RAMDISK_SIZE, b"\0")))
    return path

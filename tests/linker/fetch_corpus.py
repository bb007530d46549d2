"""Fetches linker scripts that no one here wrote: those inside Debian packages, and Linux's own.

    python tests/linker/fetch_corpus.py [DIRECTORY]

Packages are downloaded by apt-get and unpacked by dpkg, never installed. What is kept is one directory of
scripts, DIRECTORY/scripts/PACKAGE/..., by default under .cache/corpus.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "corpus"

# Cross linkers bring the default scripts of their emulations, libraries the scripts for their targets.
PACKAGES = (
    "binutils-arm-none-eabi",
    "binutils-avr",
    "binutils-h8300-hms",
    "binutils-m68hc1x",
    "binutils-mips-linux-gnu",
    "binutils-or1k-elf",
    "binutils-powerpc64le-linux-gnu",
    "binutils-riscv64-unknown-elf",
    "binutils-s390x-linux-gnu",
    "binutils-sh-elf",
    "binutils-sparc64-linux-gnu",
    "binutils-xtensa-lx106",
    "gcc-arm-none-eabi",
    "gnu-efi",
    "libnewlib-arm-none-eabi",
    "msp430mcu",
    "openocd",
    "picolibc-arm-none-eabi",
    "picolibc-xtensa-lx106-elf",
    "brickos",
    "criu",
    "umps3",
    "qbs-examples",
    "rr",
)
# One script of openocd includes a header that the package does not have.
_SCRIPT = re.compile(r"(?!.*/npcx_flash\.lds)(?:.*\.(?:ld|lds|ldscript|lds\.S)|.*/ldscripts/.*)\Z")
_LINUX = (
    "arch/x86/kernel/vmlinux.lds.S",
    "arch/x86/boot/compressed/vmlinux.lds.S",
    "arch/x86/boot/setup.ld",
)


def _run(*words: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _download(package: str, directory: Path) -> Path:
    """Download one package and unpack it; return where."""
    with tempfile.TemporaryDirectory() as scratch:
        _run("apt-get", "download", package, cwd=Path(scratch))
        (archive,) = Path(scratch).glob("*.deb")
        target = directory / package
        _run("dpkg", "-x", archive, target)
    return target


def _keep_scripts(package: str, unpacked: Path, scripts: Path) -> int:
    count = 0
    for path in sorted(unpacked.rglob("*")):
        name = path.relative_to(unpacked).as_posix()
        if path.is_file() and not path.is_symlink() and _SCRIPT.match(name):
            target = scripts / package / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            count += 1
    return count


def _depends(package: str, pattern: str) -> str:
    text = _run("apt-cache", "depends", package)
    match = re.search(rf"Depends: ({pattern})", text)
    if match is None:
        raise SystemExit(f"{package} depends on nothing called {pattern}")
    return match[1]


def _linux(directory: Path, scripts: Path) -> None:
    """Unpack Linux's x86 scripts and preprocess them with the headers of Debian's kernel."""
    headers = _depends("linux-headers-amd64", r"linux-headers-\d\S+")
    common = _depends(headers, r"linux-headers-\S+-common")
    source_package = _depends("linux-source", r"linux-source-\S+")
    generated, shared, source = (
        next((_download(name, directory) / "usr" / "src").iterdir())
        for name in (headers, common, source_package)
    )
    archive = source if source.is_file() else next(source.parent.glob("*.tar.xz"))
    top = archive.name.removesuffix(".tar.xz")
    tree = directory / "linux"
    tree.mkdir()
    # All of them stand early in the archive: tar stops reading at the last one.
    _run("tar", "-xJf", archive, "-C", tree, "--occurrence=1", *(f"{top}/{name}" for name in _LINUX))
    include = [
        shared / "arch/x86/include",
        generated / "arch/x86/include/generated",
        shared / "include",
        shared / "arch/x86/include/uapi",
        generated / "arch/x86/include/generated/uapi",
        shared / "include/uapi",
        generated / "include/generated/uapi",
        generated / "include",
    ]
    options = [word for path in include for word in ("-I", path)]
    target = directory / "made"
    target.mkdir()
    for name in _LINUX:
        path = tree / top / name
        out = target / name.replace("/", "_").removesuffix(".S")
        if path.suffix != ".S":
            shutil.copyfile(path, out)
            continue
        text = _run(
            "cpp", "-nostdinc", *options, "-include", shared / "include/linux/kconfig.h", "-D__KERNEL__",
            "-D__ASSEMBLY__", "-DLINKER_SCRIPT", "-Ui386", "-Ux86_64", "-P", path,
        )  # fmt: skip
        out.write_text(text)
    shutil.copytree(target, scripts / "linux")


def fetch(directory: Path = CACHE) -> Path:
    """Fetch everything that is not there yet; return the directory of scripts."""
    scripts = directory / "scripts"
    for package in PACKAGES:
        if (scripts / package).exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = _download(package, Path(scratch))
            if not _keep_scripts(package, unpacked, scripts):
                raise SystemExit(f"{package} contains no linker script any more")
    if not (scripts / "linux").exists():
        with tempfile.TemporaryDirectory() as scratch:
            _linux(Path(scratch), scripts)
    return scripts


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE))

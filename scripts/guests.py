#!/usr/bin/env python3
"""Fetch the real kernels the tests boot, out of Debian's packages, without root.

apt does the fetching and the checking (signed Release, SHA-256 of every package): this script gives it a
private configuration for each Debian release, made from the machine's own sources, so that nothing outside
the cache is written and no mirror is named here. Standard library only: it runs before anything is installed.

    scripts/guests.py             fetch what is missing
    scripts/guests.py --refresh   fetch everything again, at the newest version
    scripts/guests.py --list      what there is, and where it comes from
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = "record.json"


class FetchError(Exception):
    """Something a person has to see to: no network, no Debian mirror, a package that has moved."""


@dataclass(frozen=True)
class Guest:
    """One file of one package: `name` in the cache, `member` a glob inside the unpacked package."""

    name: str
    package: str
    arch: str
    suite: str
    member: str
    metapackage: bool = False


def _grub(member: str) -> Guest:
    return Guest(member, "grub-xen-host", "amd64", "bookworm", f"usr/lib/grub-xen/{member}")


def _gnumach(suite: str, arch: str) -> Guest:
    name = f"gnumach-{suite}-{arch}.gz"
    return Guest(name, "gnumach-image-1.8-xen-486", arch, suite, "boot/gnumach-1.8-xen-486.gz")


def _linux(suite: str) -> Guest:
    name = f"vmlinuz-{suite}-amd64"
    return Guest(name, "linux-image-amd64", "amd64", suite, "boot/vmlinuz-*", metapackage=True)


MODULES = {  # what a root on xvda and a network need of Debian's kernel, in the order of loading
    "crc16": "lib",
    "crc32c_generic": "crypto",
    "mbcache": "fs",
    "jbd2": "fs/jbd2",
    "ext4": "fs/ext4",
    "xen-blkfront": "drivers/block",
    "xen-netfront": "drivers/net",
}


def _modules(suite: str) -> tuple[Guest, ...]:
    kernel = _linux(suite)
    return tuple(
        replace(kernel, name=f"{name}-{suite}-amd64.ko", member=f"lib/modules/*/kernel/{folder}/{name}.ko*")
        for name, folder in MODULES.items()
    )


def _busybox(arch: str) -> Guest:
    return Guest(f"busybox-{arch}", "busybox-static", arch, "bookworm", "*bin/busybox")


MANIFEST: tuple[Guest, ...] = (
    _grub("grub-i386-xen.bin"),
    _grub("grub-x86_64-xen.bin"),
    _grub("grub-i386-xen_pvh.bin"),
    _gnumach("bullseye", "i386"),
    _gnumach("bookworm", "i386"),
    _gnumach("bookworm", "amd64"),
    _gnumach("trixie", "i386"),
    _linux("bookworm"),
    *_modules("bookworm"),
    _linux("trixie"),
    *_modules("trixie"),
    _busybox("amd64"),
    _busybox("i386"),
)

# Kernels of releases that a mirror may already have archived: their absence is reported, not an error.
OPTIONAL_SUITES = frozenset({"bullseye"})


def cache_directory() -> Path:
    """Where the guests are kept: $DOMAINBUILDER_CACHE/guests, or .cache/guests in this tree."""
    return Path(os.environ.get("DOMAINBUILDER_CACHE") or ROOT / ".cache") / "guests"


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "dpkg", "Err"))] or lines[-3:]
        raise FetchError(f"{Path(command[0]).name} failed: " + "; ".join(errors[:4]))
    return done.stdout


def debian_mirrors() -> dict[str, str]:
    """The machine's own Debian mirrors: `debian`, and `debian-security` where it has one, to their URIs.

    Raises FetchError where apt is missing or none of its sources is a Debian archive.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise FetchError("this needs apt-get and dpkg (Debian, or a container of it)")
    rows = _run("apt-get", "indextargets", "--format", "$(CREATED_BY)|$(COMPONENT)|$(REPO_URI)").splitlines()
    prefix = "Packages|main|"
    uris = [row.removeprefix(prefix).rstrip("/") for row in rows if row.startswith(prefix)]
    mirrors = {uri.rsplit("/", 1)[1]: uri for uri in uris if uri.endswith(("/debian", "/debian-security"))}
    if "debian" not in mirrors:
        raise FetchError("none of apt's sources on this machine is a Debian archive")
    return mirrors


def _sources(suite: str, arches: str, mirrors: dict[str, str], *, security: bool) -> str:
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f" signed-by={keyring}" if keyring.exists() else ""
    lines = [f"deb [arch={arches}{signed}] {mirrors['debian']} {suite} main"]
    if security:
        lines.append(f"deb [arch=amd64{signed}] {mirrors['debian-security']} {suite}-security main")
    return "\n".join(lines) + "\n"


def apt_options(arches: str, state: Path) -> list[str]:
    """Options that make apt see nothing of this machine's state, and write nothing outside `state`."""
    for folder in ("lists/partial", "archives/partial", "etc"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Dir::Etc::sourcelist": state / "etc/sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "APT::Architectures": arches,
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _real_package(options: list[str], guest: Guest) -> str:
    """The package behind a metapackage: the one it depends on that carries the kernel."""
    if not guest.metapackage:
        return guest.package
    text = _run("apt-cache", *options, "depends", "--important", guest.package)
    real = re.findall(r"Depends: (linux-image-\d\S*)", text)
    if not real:
        raise FetchError(f"{guest.package} of {guest.suite} depends on no linux-image package")
    return str(real[0])


def fetch(guests: list[Guest], options: list[str], state: Path, cache: Path) -> dict[str, dict[str, str]]:
    """Download the package of these guests, unpack it and keep their files; what was fetched, by name."""
    package, arch = _real_package(options, guests[0]), guests[0].arch
    with tempfile.TemporaryDirectory(dir=state) as scratch:
        folder = Path(scratch)
        _run("apt-get", *options, "-qq", "download", f"{package}:{arch}", cwd=folder)
        archive = next(folder.glob("*.deb"))
        version = _run("dpkg-deb", "-f", str(archive), "Version").strip()
        _run("dpkg", "-x", str(archive), str(folder / "tree"))
        return {guest.name: _keep(guest, folder / "tree", package, version, cache) for guest in guests}


def _keep(guest: Guest, tree: Path, package: str, version: str, cache: Path) -> dict[str, str]:
    """One file of an unpacked package into the cache, unpacked itself where it is a module in xz."""
    found = [*tree.glob(guest.member), *tree.glob(f"usr/{guest.member}")]
    if not found:
        raise FetchError(f"{package} {version} of {guest.suite} has no {guest.member}")
    data = found[0].read_bytes()
    if found[0].suffix == ".xz":
        data = lzma.decompress(data)
    target = cache / guest.name
    partial = target.with_suffix(target.suffix + ".part")
    partial.write_bytes(data)
    partial.chmod(0o755 if guest.package.startswith("busybox") else 0o644)
    partial.replace(target)
    return {
        "package": package,
        "version": version,
        "arch": guest.arch,
        "suite": guest.suite,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _update(suite: str, arches: str, state: Path, mirrors: dict[str, str]) -> list[str]:
    """The apt options for `suite`, its lists fetched; without its security updates where they fail."""
    options = apt_options(arches, state)
    tries = [True, False] if "debian-security" in mirrors and suite not in OPTIONAL_SUITES else [False]
    for security in tries:
        (state / "etc/sources.list").write_text(_sources(suite, arches, mirrors, security=security))
        try:
            _run("apt-get", *options, "-qq", "update")
        except FetchError as error:
            if not security:
                raise
            print(f"  going on without {suite}-security: {error}", flush=True)
        else:
            break
    return options


def _fetch_suite(
    suite: str, guests: list[Guest], cache: Path, mirrors: dict[str, str]
) -> dict[str, dict[str, str]]:
    state = cache / "apt" / suite
    arches = ",".join(sorted({guest.arch for guest in guests} | {"amd64"}))
    options = _update(suite, arches, state, mirrors)
    fetched = {}
    for package in dict.fromkeys((guest.package, guest.arch) for guest in guests):
        of_package = [guest for guest in guests if (guest.package, guest.arch) == package]
        for name, row in fetch(of_package, options, state, cache).items():
            fetched[name] = row
            print(f"  {name:32} {row['package']} {row['version']}", flush=True)
    shutil.rmtree(state, ignore_errors=True)
    return fetched


def _suite(guest: Guest) -> str:
    return guest.suite


def _source(guest: Guest) -> tuple[str, str, str]:
    return guest.suite, guest.package, guest.arch


def fetch_missing(cache: Path, *, refresh: bool) -> list[str]:
    """Fetch every guest of the manifest that the cache lacks; the names of optional ones not to be had."""
    cache.mkdir(parents=True, exist_ok=True)
    record = json.loads((cache / RECORD).read_text()) if (cache / RECORD).exists() else {}
    have = set() if refresh else {name for name in record if (cache / name).exists()}
    lacking = {_source(guest) for guest in MANIFEST if guest.name not in have}
    missing = [
        guest for guest in MANIFEST if _source(guest) in lacking
    ]  # files of a package are of one version
    if not missing:
        print(f"guests: all {len(MANIFEST)} are in {cache}")
        return []
    mirrors = debian_mirrors()
    absent: list[str] = []
    for suite, group in groupby(sorted(missing, key=_suite), key=_suite):
        guests = list(group)
        print(f"guests: from Debian {suite}", flush=True)
        try:
            record.update(_fetch_suite(suite, guests, cache, mirrors))
        except FetchError as error:
            if suite not in OPTIONAL_SUITES:
                raise
            absent += [guest.name for guest in guests]
            print(f"  not to be had: {error}", flush=True)
        (cache / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(cache / "apt", ignore_errors=True)
    return absent


def main() -> int:
    """The command line; exit code 2 where something is missing that a person has to see to."""
    parser = argparse.ArgumentParser(description="Fetch the real kernels the tests boot, without root.")
    parser.add_argument("--refresh", action="store_true", help="fetch everything again")
    parser.add_argument("--list", action="store_true", help="list the guests and their packages")
    arguments = parser.parse_args()
    if arguments.list:
        for guest in MANIFEST:
            print(f"{guest.name:28} {guest.package}:{guest.arch} of {guest.suite}")
        return 0
    try:
        fetch_missing(cache_directory(), refresh=arguments.refresh)
    except FetchError as error:
        print(f"guests: {error}", file=sys.stderr)
        print("guests: this needs a network; tests of real kernels skip without it", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"guests: {error.filename or 'the cache'}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

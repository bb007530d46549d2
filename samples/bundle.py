#!/usr/bin/env python3
"""Put the conformance guests into the archive that `domainbuilder conform` runs them from.

    samples/bundle.py             build them and write domainbuilder/guests/conformance.tar.xz
    samples/bundle.py --check     build them and compare with what the archive holds

One archive, because the guests share most of their code: 3 MB of kernels take 139 KB.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build

ARCHIVE = build.BUNDLED / "conformance.tar.xz"
TITLES = "titles.json"
_TITLE = re.compile(r'^const char test_title\[\] = "([^"]*)";$', re.MULTILINE)


def titles() -> dict[str, str]:
    """What each guest says that it covers, by name."""
    found = {}
    for path in sorted((build.SAMPLES / "conformance").glob("*.c")):
        if path.stem != "conform":
            title = _TITLE.search(path.read_text("utf-8"))
            if title is None:
                raise build.BuildFailure(f"{path.name}: no test_title on one line")
            found[path.stem] = title[1]
    return found


def contents() -> dict[str, bytes]:
    """The archive's files, freshly built: the titles, and the guests of both widths."""
    with tempfile.TemporaryDirectory() as name:
        files = {path.name: path.read_bytes() for path in build.build(build.conformance(), Path(name))}
    return {TITLES: json.dumps(titles(), indent=1).encode() + b"\n", **dict(sorted(files.items()))}


def write(files: dict[str, bytes], archive: Path) -> None:
    """The archive, without times and owners."""
    with tarfile.open(archive, "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def read(archive: Path) -> dict[str, bytes]:
    """What an archive holds; nothing where there is none."""
    if not archive.exists():
        return {}
    with tarfile.open(archive) as tar:
        return {member.name: stream.read() for member in tar if (stream := tar.extractfile(member))}


def differing(archive: Path = ARCHIVE) -> list[str]:
    """The names of the files that are not in `archive` as a build gives them."""
    fresh, bundled = contents(), read(archive)
    return sorted(name for name in fresh.keys() | bundled.keys() if fresh.get(name) != bundled.get(name))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Bundle the conformance guests.")
    parser.add_argument("--check", action="store_true", help="compare with the archive instead")
    try:
        if parser.parse_args().check:
            changed = differing()
            print("\n".join(f"{name} differs from a fresh build" for name in changed) or "all equal")
            return 1 if changed else 0
        write(contents(), ARCHIVE)
    except build.BuildFailure as failure:
        print(failure, file=sys.stderr)
        return 2
    print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What `launch --resume-at` costs the second time: `python -m benchmarks.bench_kept [GUEST...]`.

From the command to the prompt, as a multiple of `python -c pass`; the median of ROUNDS (5). Then PARALLEL (0)
at a time, whose counts are compared.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.guests import Guest, all_guests

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PARALLEL = int(os.environ.get("PARALLEL", "0"))


def command(guest: Guest) -> list[str]:
    """The launch, to the prompt and no further."""
    options = guest.launch
    words = [sys.executable, "-m", "domainbuilder", "launch", str(options["kernel"])]
    words += ["-m", str(options["memory_mib"]), "--stats", "--resume-at", guest.prompt.removesuffix("$")]
    if "ramdisk" in options:
        words += ["--ramdisk", str(options["ramdisk"]), "--cmdline", options["cmdline"]]
    question, answer = guest.ask(1)
    send = question.encode("unicode_escape").decode()
    return [*words, "--send", send, "--expect", answer, "--until-match"]


def seconds(words: Sequence[str], environment: dict[str, str]) -> float:
    """How long a command takes."""
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def counts(stderr: bytes) -> bytes:
    """What of the statistics is the same for the same inputs."""
    return stderr.partition(b"on this host")[0]


def main() -> None:
    """Print a line for each guest."""
    wanted = sys.argv[1:]
    with all_guests() as guests, tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        bare = statistics.median(seconds([sys.executable, "-c", "pass"], environment) for _ in range(9))
        for guest in guests:
            if wanted and guest.name not in wanted:
                continue
            words = command(guest)
            first = seconds(words, environment)
            again = statistics.median(seconds(words, environment) for _ in range(ROUNDS))
            line = (
                f"{guest.name:12} first {first:7.2f} s, again {again:6.3f} s ({again / bare:4.1f} x python)"
            )
            if PARALLEL:
                running = [
                    subprocess.Popen(
                        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
                    )
                    for _ in range(PARALLEL)
                ]
                started = time.perf_counter()
                told = {counts(one.communicate()[1]) for one in running}
                line += f", {PARALLEL} at a time {time.perf_counter() - started:.1f} s, {len(told)} result"
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""Random sequences of acts on qcow2 images, by us and by QEMU in turn; and who is killed in the middle.

`QCOW2_SEQUENCES=10000` and `QCOW2_KILLS=200` for so many; `QCOW2_SEED=N` begins with that one.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

from hvcore.backends.qcow2 import Qcow2Image
from tests.hvcore.backends.qcow2_chain import Act, Chain, do, note, random_acts, tool

FIRST = int(os.environ.get("QCOW2_SEED", "0"))
SEQUENCES = int(os.environ.get("QCOW2_SEQUENCES", "12"))
KILLS = int(os.environ.get("QCOW2_KILLS", "5"))


def test_random_sequences_beside_qemu(tmp_path: Path) -> None:
    for seed in range(FIRST, FIRST + SEQUENCES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        chance = Random(f"sequence {seed}")
        try:
            chain = Chain(folder, chance)
            for _ in range(chance.randrange(1, 5)):
                chain.step()
            chain.check()
        except Exception as error:
            raise AssertionError(f"QCOW2_SEED={seed}, {folder}: {error}") from error
        shutil.rmtree(folder)


def _acts_until_killed(path: Path, seed: int, size: int, answered: int) -> None:
    """In a process of its own: acts, each told of when it is done."""
    try:
        image = Qcow2Image(str(path), writable=True)
        for act in random_acts(Random(seed), size):
            do(image, act)
            os.write(answered, b".")
    finally:
        os._exit(1)


def test_who_is_killed_leaves_a_whole_image(tmp_path: Path) -> None:
    """All that was answered is there, and QEMU finds nothing wrong but clusters that nobody uses."""
    for seed in range(FIRST, FIRST + KILLS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        chance = Random(f"kill {seed}")
        chain = Chain(folder, chance)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            _acts_until_killed(chain.path, seed, len(chain.model), writer)
        os.close(writer)
        time.sleep(chance.random() * 0.1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as answered:
            done = len(answered.read())
        acts = random_acts(Random(seed), len(chain.model))
        for _ in range(done):
            note(chain.model, next(acts))
        _whole(chain, next(acts), f"QCOW2_SEED={seed}, {done} acts")
        shutil.rmtree(folder)


def _whole(chain: Chain, under_way: Act, which: str) -> None:
    """The image is as the model, but where the act was that nobody answered."""
    checked = tool("qemu-img", "check", "-f", "qcow2", chain.path)
    assert checked.returncode in (0, 3), f"{which}: {checked.stdout}"  # 3: leaked clusters alone
    raw = chain.folder / "raw"
    assert tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", chain.path, raw).returncode == 0
    found, start, end = raw.read_bytes(), under_way.offset, under_way.offset + under_way.length
    assert found[:start] == chain.model[:start], which
    assert found[end:] == chain.model[end:], which

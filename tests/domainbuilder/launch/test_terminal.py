"""The console on a terminal: raw while it lasts, as it was afterwards, whatever happened."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from domainbuilder.launch.terminal import ESCAPE, FileInput, TerminalInput, write_all

LAUNCH = f"'{sys.executable}' -m domainbuilder launch"


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


class Session:
    """A shell on a pseudo-terminal: one command, then its exit code and the mode it left."""

    def __init__(self, command: str) -> None:
        tell = "echo; echo \"exit $code $(stty -a | tr '\\n' ' ')\""
        line = f"{command}; code=$?; {tell}"
        self.child = pexpect.spawn("/bin/sh", ["-c", line], timeout=60, dimensions=(24, 100))
        self.child.delaybeforesend = None

    def mode(self) -> int:
        """The terminal's local modes."""
        return int(termios.tcgetattr(self.child.child_fd)[3])

    def end(self) -> tuple[int, str]:
        """Exit code and `stty -a`, once the command has ended."""
        self.child.expect(rb"exit (\d+) ([^\r]*)")
        code, stty = int(self.child.match[1]), self.child.match[2].decode()
        self.child.expect(pexpect.EOF)
        return code, stty


COOKED = (" icanon", " echo ", " isig", " icrnl", " ixon")


def is_cooked(stty: str) -> bool:
    return all(f"{flag.strip()}" in stty.split() for flag in COOKED)


def raw_at_prompt(command: str) -> Session:
    session = Session(command)
    session.child.expect(rb"hello> ")
    assert not session.mode() & (termios.ICANON | termios.ECHO | termios.ISIG)
    return session


def test_typing_and_leaving_by_the_guests_end(hello: Path) -> None:
    session = raw_at_prompt(f"{LAUNCH} {hello}")
    session.child.send("about\r")
    session.child.expect(rb"about\r\n.*hello> ")
    session.child.send("halt\r")
    session.child.expect(rb"bye")
    code, stty = session.end()
    assert code == 0
    assert is_cooked(stty)


def test_the_escape_key(hello: Path) -> None:
    session = raw_at_prompt(f"{LAUNCH} {hello}")
    session.child.send("abo")
    session.child.expect("abo")  # the guest's own echo
    session.child.send(ESCAPE)
    session.child.expect("console was closed")
    code, stty = session.end()
    assert code == 0
    assert is_cooked(stty)


def test_the_escape_key_is_announced(hello: Path) -> None:
    session = Session(f"{LAUNCH} {hello}")
    session.child.expect(r"Ctrl-\]")
    session.child.expect("hello> ")
    session.child.send(ESCAPE)
    assert session.end()[0] == 0


def test_control_characters_are_the_guests(hello: Path) -> None:
    session = raw_at_prompt(f"{LAUNCH} {hello}")
    session.child.send("\x03\x1a\x11about\r")  # Ctrl-C, Ctrl-Z, Ctrl-Q end and stop nothing
    session.child.expect("hello> ")
    session.child.send("\rhalt\r")
    session.child.expect("bye")
    assert session.end()[0] == 0


def python_of(session: Session) -> int:
    """The process of domainbuilder: the shell's child."""
    shell = session.child.pid
    children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return int(children[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_give_the_terminal_back(hello: Path, number: signal.Signals) -> None:
    session = raw_at_prompt(f"{LAUNCH} {hello}")
    os.kill(python_of(session), number)
    code, stty = session.end()
    assert code == 128 + number
    assert is_cooked(stty)


def test_a_signal_while_the_guest_is_busy(tmp_path: Path) -> None:
    from tests.domainbuilder.tiny_guest import SPIN, kernel

    path = tmp_path / "spin.elf"
    path.write_bytes(kernel(SPIN))
    session = Session(f"{LAUNCH} {path}")
    session.child.expect(r"Ctrl-\]")
    while session.mode() & termios.ICANON:
        pass
    os.kill(python_of(session), signal.SIGTERM)
    code, stty = session.end()
    assert code == 128 + signal.SIGTERM
    assert is_cooked(stty)


def test_the_escape_key_while_the_guest_is_busy(tmp_path: Path) -> None:
    from tests.domainbuilder.tiny_guest import SPIN, kernel

    path = tmp_path / "spin.elf"
    path.write_bytes(kernel(SPIN))
    session = Session(f"{LAUNCH} {path}")
    session.child.expect(r"Ctrl-\]")
    session.child.send(ESCAPE)
    code, stty = session.end()
    assert code == 0
    assert is_cooked(stty)


def test_stopping_and_going_on(hello: Path) -> None:
    session = raw_at_prompt(f"{LAUNCH} {hello}")
    os.kill(python_of(session), signal.SIGTSTP)
    os.kill(python_of(session), signal.SIGCONT)
    session.child.send("about\r")
    session.child.expect(rb"about\r\n.*hello> ")
    assert not session.mode() & termios.ICANON
    session.child.send(ESCAPE)
    assert is_cooked(session.end()[1])


def test_a_crash_in_the_guest_leaves_a_readable_report(hello: Path) -> None:
    session = raw_at_prompt(f"{LAUNCH} {hello}")
    session.child.send("crash\r")
    session.child.expect(rb"\r\nrax: [0-9a-f]{16}   rbx")
    code, stty = session.end()
    assert code == 3
    assert is_cooked(stty)


def test_output_that_fails_gives_the_terminal_back(hello: Path) -> None:
    session = Session(f"{LAUNCH} {hello} --console-log /dev/full")
    session.child.expect("No space left")
    code, stty = session.end()
    assert code == 2
    assert is_cooked(stty)


def test_idle_time_passes_as_the_users_does(hello: Path) -> None:
    """Two looks at the guest's clock around a pause at the prompt: what passed here passed there."""
    session = raw_at_prompt(f"{LAUNCH} {hello}")

    def guest_ns() -> int:
        session.child.send("time\r")
        session.child.expect(rb"(\d+) ns since boot")
        return int(session.child.match[1])

    first = guest_ns()
    session.child.expect("hello> ")
    with pytest.raises(pexpect.TIMEOUT):
        session.child.expect("nothing", timeout=0.5)
    assert guest_ns() - first >= 500_000_000
    session.child.send(ESCAPE)
    session.end()


def test_progress_is_shown_on_a_terminal_and_taken_back(tmp_path: Path) -> None:
    from tests.domainbuilder.tiny_guest import SPIN, kernel

    path = tmp_path / "spin.elf"
    path.write_bytes(kernel(SPIN))
    session = Session(f"{LAUNCH} {path} --timeout 3 </dev/null")
    session.child.expect(r"\[running, no output: \d+ s\]")
    session.child.expect("\r\x1b\\[K")
    session.child.expect("domainbuilder: time is up")
    assert session.end()[0] == 4


# The pieces.


def test_a_file_ends_and_stays_ended(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"typed")
    with path.open("rb") as file:
        source = FileInput(file.fileno())
        assert source.read() == b"typed"
        assert source.open
        assert source.read() == b""
        assert not source.open
        assert not source.detached


def test_nothing_typed_is_nothing() -> None:
    reader, writer = os.pipe()
    try:
        source = FileInput(reader)
        assert source.read() == b""
        assert source.open
        os.write(writer, b"x")
        assert source.read() == b"x"
    finally:
        os.close(reader)
        os.close(writer)
    assert source.read() == b""
    assert not source.open


def test_what_is_typed_before_the_escape_key_counts() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"abc" + ESCAPE + b"def")
    source = TerminalInput(reader)
    assert source.read() == b"abc"
    assert source.detached
    assert not source.open
    os.close(reader)
    os.close(writer)


def test_a_pipe_that_is_full_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(200_000)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        write_all(writer, data)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == data
    assert os.waitpid(pid, 0)[1] == 0

"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.domainbuilder.tiny_guest import SPIN, UD2, kernel

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent.parent
CONFTEST = """
import pytest
from domainbuilder import guests

@pytest.fixture(scope="session")
def booted(boot_domain):
    with open("boots", "a") as file:
        file.write("x")
    return boot_domain(guests.path("hello"), 16, until="^hello> ", timeout=60)

@pytest.fixture
def machine(booted, clone_domain):
    return clone_domain(booted)
"""


@pytest.fixture(autouse=True)
def _alone(
    request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No plugin but this one, which is found by its entry point in the first test."""
    ini = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
    if "boot_once" not in request.node.name:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        ini += "addopts = -p domainbuilder.pytest_plugin\n"
    pytester.makeini(ini)


def test_boot_once_and_every_test_has_a_machine_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("""
        import os, pytest
        pids = set()

        @pytest.mark.parametrize("n", range(5))
        def test_it(machine, n):
            pids.add(machine.pid)
            assert machine.console.transcript.endswith("hello> ")
            machine.console.send("halt\\n")
            assert machine.wait().reason == "poweroff"

        def test_they_were_others_and_are_gone():
            assert len(pids) == 5
            for pid in pids:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=6)
    assert (pytester.path / "boots").read_text() == "x"


def test_xdist(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("n", range(6))
        def test_it(machine, n):
            machine.console.send("about\\n")
            machine.console.expect("command line")
            assert n != 5
    """)
    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*console of the domain*", "hello> about", "command line*"])
    assert len((pytester.path / "boots").read_text()) <= 2


def test_a_failure_has_console_and_state(pytester: pytest.Pytester) -> None:
    (pytester.path / "dies.elf").write_bytes(kernel(UD2))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("""
        import domainbuilder

        def test_wrong(machine):
            machine.console.send("about\\n")
            machine.console.expect("never said")

        def test_crash(boot_domain, clone_domain):
            dying = clone_domain(boot_domain("dies.elf", timeout=60))
            dying.console.expect("alive")

        def test_two(booted, clone_domain):
            one, other = clone_domain(booted), clone_domain(booted)
            one.console.send("halt\\n")
            one.wait()
            assert False

        def test_fine(machine):
            pass
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*ExpectEOF*", "*- console of the domain -*", "command line*", "hello> ",
            "*- where the domain stands -*", "*vcpu*",
            "*- console of the domain -*", "*- crash of the domain -*", "*RIP*",
            "*- console of the domain 1 -*", "*bye", "*- console of the domain 2 -*",
            "*- where the domain 2 stands -*",
        ]
    )  # fmt: skip
    assert "where the domain 1 stands" not in result.stdout.str()


def test_a_boot_that_fails_is_told_of(pytester: pytest.Pytester) -> None:
    (pytester.path / "spin.elf").write_bytes(kernel(SPIN))
    pytester.makepyfile("""
        import pytest

        @pytest.fixture(scope="session")
        def booted(boot_domain):
            return boot_domain("spin.elf", until="never", max_guest_seconds=0.01)

        def test_it(booted, clone_domain):
            clone_domain(booted)
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ExpectTimeout*", "*- where the domain stands -*"])


def test_a_kept_boot_is_there_for_the_next_session(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.replace("timeout=60", "timeout=60, kept=True"))
    pytester.makepyfile("""
        def test_it(machine):
            machine.console.send("halt\\n")
            assert machine.wait().reason == "poweroff"
    """)
    for _ in range(2):
        pytester.runpytest_subprocess().assert_outcomes(passed=1)
        folder = Path(os.environ["XDG_CACHE_HOME"], "domainbuilder", "domains")
        assert len(list(folder.glob("*.domain"))) == 1


def test_loading_the_plugin_costs_nothing_that_can_be_left_for_later() -> None:
    code = "import sys, domainbuilder.pytest_plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"unicorn", "pydantic", "lief", "domainbuilder.launch.domain"} & set(loaded.split())


def test_the_document_s_example_runs(pytester: pytest.Pytester) -> None:
    text = (ROOT / "docs" / "clones.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    program, conftest, tests, tight_loop = blocks
    for each in (program, tight_loop):
        subprocess.run([sys.executable, "-c", each], check=True)
    pytester.makeconftest(conftest)
    pytester.makepyfile(tests)
    pytester.runpytest_subprocess().assert_outcomes(passed=32)

"""The Python interface: what is public, that it is documented, and that the steps take the same."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.session import Outcome

SHARED = ("kernel", "memory_mib", "ramdisk", "cmdline", "guest_type")


def test_dir_shows_what_is_public() -> None:
    shown = {name for name in dir(domainbuilder) if not name.startswith("_")}
    assert shown == set(domainbuilder.__all__) - {"__version__"}


def test_help_shows_what_is_public() -> None:
    text = pydoc.plain(pydoc.render_doc(domainbuilder))
    for name in set(domainbuilder.__all__) - {"__version__"}:
        assert name in text
    assert "memory_mib" in text


@pytest.mark.parametrize("name", [name for name in domainbuilder.__all__ if name != "__version__"])
def test_everything_public_is_documented(name: str) -> None:
    thing = getattr(domainbuilder, name)
    documented = inspect.getdoc(thing)
    assert documented
    assert name in (domainbuilder.__doc__ or "") or inspect.isfunction(thing)
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_a_name_is_the_same_thing_wherever_it_is_imported_from() -> None:
    for name, module in domainbuilder._HOMES.items():
        assert getattr(domainbuilder, name) is getattr(
            importlib.import_module(f"domainbuilder.{module}"), name
        )


@pytest.mark.parametrize("name", ["plan", "build", "launch"])
def test_the_steps_take_the_same(name: str) -> None:
    signature = inspect.signature(getattr(domainbuilder, name))
    assert tuple(signature.parameters)[: len(SHARED)] == SHARED
    planned = inspect.signature(domainbuilder.plan)
    for parameter in SHARED[1:]:
        mine, theirs = signature.parameters[parameter], planned.parameters[parameter]
        assert (mine.kind, mine.default, mine.annotation) == (theirs.kind, theirs.default, theirs.annotation)


def test_the_options_of_a_launch_are_shown_by_name_everywhere() -> None:
    """A host's domains take what a domain alone does, but for what belongs to the host."""
    alone = inspect.signature(domainbuilder.launch).parameters
    beside = inspect.signature(domainbuilder.Host.launch).parameters
    assert alone.keys() - beside.keys() == {"record", "replay", "plain", "past"}
    assert beside.keys() - alone.keys() == {"self"}
    assert alone["vcpus"].default == 1
    assert "- cap: " in (inspect.getdoc(domainbuilder.launch) or "")


def test_each_step_goes_on_from_the_one_before(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    planned = domainbuilder.plan(sample_guest("hello"), 32, cmdline="ticks=1")
    image = domainbuilder.build(planned)
    domainbuilder.save_image(image, tmp_path / "hello.core")
    for kernel in (
        planned,
        image,
        domainbuilder.load_image(tmp_path / "hello.core"),
        tmp_path / "hello.core",
    ):
        with domainbuilder.launch(kernel, timeout=60) as dom:
            dom.console.expect("tick 1,")
            dom.console.expect("hello> ")
            dom.console.send("halt\n")
            assert dom.wait() == Outcome("poweroff")
    for step in (domainbuilder.build, domainbuilder.launch):
        with pytest.raises(domainbuilder.BuildError, match="has its memory"):
            step(planned, 64)


def test_memory_that_nobody_asked_for(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    assert domainbuilder.plan(sample_guest("hello")).nr_pages == 64 << 8
    ramdisk = tmp_path / "ramdisk"
    with ramdisk.open("wb") as stream:
        stream.truncate(100 << 20)
    planned = domainbuilder.plan(sample_guest("hello"), ramdisk=ramdisk)
    assert planned.nr_pages == 256 << 8
    with pytest.raises(domainbuilder.LayoutError, match=r"found 70 MB of memory; expected -m 256 "):
        domainbuilder.plan(sample_guest("hello"), 70, ramdisk=ramdisk)
    with ramdisk.open("wb") as stream:
        stream.truncate(600 << 20)
    with pytest.raises(domainbuilder.LayoutError, match=r"expected -m 2048 "):
        domainbuilder.plan(sample_guest("hello"), ramdisk=ramdisk)


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, domainbuilder; dir(domainbuilder); print([m for m in sys.modules if 'builder.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

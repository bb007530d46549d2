"""hvcore/public against what a compiler makes of Xen's own headers (libxen-dev 4.17)."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path

import pytest

from tests.hvcore.public_layouts import DATA, LAYOUTS, compiled, offsets
from tests.needs import find_tool, missing

FACTS = json.loads(DATA.read_text())
CASES = [(module, name, word) for module, names in LAYOUTS.items() for name in names for word in (4, 8)]


def layout(module: str, name: str, word: int) -> struct.Struct:
    found = getattr(importlib.import_module(f"hvcore.public.{module}"), name)
    made = found[word] if isinstance(found, dict) else found
    assert isinstance(made, struct.Struct)
    return made


@pytest.mark.parametrize(("module", "name", "word"), CASES)
def test_sizes_and_offsets(module: str, name: str, word: int) -> None:
    size, *at = FACTS[str(word)][name]
    ours = layout(module, name, word)
    assert ours.size == size
    assert offsets(ours) == at


def test_every_layout_is_compared() -> None:
    """A Struct that is added to a public header has to be added to the comparison."""
    for module, names in LAYOUTS.items():
        public = importlib.import_module(f"hvcore.public.{module}")
        structs = {
            name
            for name, value in vars(public).items()
            if isinstance(value, struct.Struct) or (isinstance(value, dict) and 4 in value and 8 in value)
            if name.islower() or "_" in name
            if not name.isupper()
        }
        assert structs - set(names) - {"grant_status", "e820entry"} == set()


def test_single_offsets_in_use() -> None:
    """Fields that are written on their own."""
    from hvcore.public import event_channel, grant_table, memory, physdev, vcpu

    for word in (4, 8):
        facts = FACTS[str(word)]
        assert event_channel.EVTCHN_OP_U == 4
        assert memory.XEN_MEMORY_EXCHANGE_NR_EXCHANGED[word] == facts["xen_memory_exchange"][-1]
        assert vcpu.RUNSTATE_STATE_ENTRY_TIME[word] == facts["vcpu_runstate_info"][2]
        assert grant_table.GNTTAB_COPY_STATUS[word] == facts["gnttab_copy"][-1]
        assert facts["gnttab_unmap_grant_ref"][-1] == grant_table.GNTTAB_UNMAP_STATUS
        assert facts["gnttab_setup_table"][3] == grant_table.GNTTAB_SETUP_TABLE_STATUS
        assert facts["gnttab_get_status_frames"][3] == grant_table.GNTTAB_GET_STATUS_FRAMES_STATUS
        assert facts["gnttab_swap_grant_ref"][-1] == grant_table.GNTTAB_SWAP_STATUS
        assert facts["gnttab_get_version"][-1] == grant_table.GNTTAB_GET_VERSION_VERSION
        assert physdev.PHYSDEV_OP_U[word] == word


@pytest.mark.parametrize("word", [4, 8])
def test_the_recorded_facts_are_the_headers(word: int) -> None:
    find_tool("gcc")
    if not Path("/usr/include/xen/memory.h").exists():
        missing("needs libxen-dev")
    assert compiled(word) == FACTS[str(word)]

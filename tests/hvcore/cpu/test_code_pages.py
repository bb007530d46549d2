"""Code that changes under the processor is executed as it is now, wherever it was changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import unicorn
from unicorn.unicorn_py3.unicorn import Uc
from unicorn.x86_const import UC_X86_REG_EBX

from hvcore import abi as abi_module
from hvcore.cpu.processor import RBX
from tests.hvcore.pv_cpu import CODE, INT3, NR_PAGES, PvCpu

TARGET, ALIAS, DATA = 0x20000, 0x21000, 0x23000
PAGE_NX = 1 << 63
FUNCTION = "b801000000 c3"  # mov eax, 1; ret
VALUES = (1, 2, 4, 8, 16)


@pytest.fixture(params=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> Iterator[PvCpu]:
    cpu = PvCpu(abi_module.PV32_PAE if request.param == "pv32" else abi_module.PV64)
    yield cpu
    cpu.engine.close()


def alias(cpu: PvCpu, flags: int) -> None:
    """Map TARGET's frame at ALIAS as well."""
    at = ((cpu.base + 3 - cpu.mem.base_mfn) << 9) + (ALIAS >> 12)
    assert cpu.d.mm.mod_l1_entry(at, (cpu.base + (TARGET >> 12)) << 12 | flags) == 0
    cpu.d.mm.flush_tlb()


def patched_calls(cpu: PvCpu, at: int) -> list[int]:
    """Call TARGET after each change of its number at `at`; what its sum becomes."""
    cpu.put(TARGET, bytes.fromhex(FUNCTION))
    code = bytearray()
    for value in VALUES:
        code += b"\xc6\x05" if cpu.abi.is_32bit else b"\xc6\x04\x25"  # mov byte [at + 1], value
        code += (at + 1).to_bytes(4, "little") + bytes([value])
        code += b"\xe8" + (TARGET - (CODE + len(code) + 5)).to_bytes(4, "little", signed=True)
        code += b"\x01\xc3"  # add ebx, eax
    assert cpu.run(bytes(code), bx=0) == [INT3]
    return [cpu.engine.q[RBX]]


def page(cpu: PvCpu, va: int) -> int:
    return (cpu.base - cpu.mem.base_mfn) + (va >> 12)


def test_pages_with_code_are_known_to_this_build_of_the_library(cpu: PvCpu) -> None:
    assert cpu.engine.code_pages.known


@pytest.mark.parametrize("flags", [0x27, 0x27 | PAGE_NX], ids=["executable", "not executable"])
def test_code_written_at_another_address(cpu: PvCpu, flags: int) -> None:
    alias(cpu, flags)
    assert patched_calls(cpu, ALIAS) == [sum(VALUES)]


def test_code_written_where_it_is_executed(cpu: PvCpu) -> None:
    assert patched_calls(cpu, TARGET) == [sum(VALUES)]


@pytest.mark.parametrize("at", [TARGET, ALIAS])
def test_an_address_known_as_data_before_its_page_had_code(cpu: PvCpu, at: int) -> None:
    alias(cpu, 0x27 | PAGE_NX)
    store = "c60520000000" if cpu.abi.is_32bit else "c6042520000000"
    early = bytes.fromhex(store)[:-4] + (at + 0x80).to_bytes(4, "little") + b"\x55"
    cpu.put(CODE, early * 3)  # stores to the page, in the same run as the code there
    assert cpu.run(early * 3) == [INT3]
    assert not cpu.engine.code_pages.holds_code(page(cpu, TARGET))
    assert patched_calls(cpu, at) == [sum(VALUES)]
    assert cpu.engine.code_pages.holds_code(page(cpu, TARGET))


def test_a_page_is_data_again_when_its_code_is_written_over(cpu: PvCpu) -> None:
    patched_calls(cpu, TARGET)
    fill = "bf" + TARGET.to_bytes(4, "little").hex() + "b900100000 31c0 f3aa"  # rep stosb over the page
    assert cpu.run(fill) == [INT3]
    assert not cpu.engine.code_pages.holds_code(page(cpu, TARGET))
    assert patched_calls(cpu, TARGET) == [sum(VALUES)]


def test_data_beside_code_in_a_page(cpu: PvCpu) -> None:
    """A counter in the page of the loop that counts."""
    loop = "ff05" if cpu.abi.is_32bit else "ff0425"  # inc dword [CODE + 0x800]
    code = bytes.fromhex(loop) + (CODE + 0x800).to_bytes(4, "little") + bytes.fromhex("ffc9")
    code += b"\x75" + (256 - len(code) - 2).to_bytes(1, "little")
    cpu.put(CODE + 0x800, bytes(4))
    assert cpu.run(code, cx=1000) == [INT3]
    assert cpu.get(CODE + 0x800, "I") == (1000,)


def test_every_frame_has_its_mark(cpu: PvCpu) -> None:
    last = page(cpu, (NR_PAGES - 1) << 12)
    assert not cpu.engine.code_pages.holds_code(last)
    with pytest.raises(IndexError):
        cpu.engine.code_pages.holds_code(last + 1)


def test_another_unicorn_in_the_process_sees_its_code_change(cpu: PvCpu) -> None:
    assert patched_calls(cpu, TARGET) == [sum(VALUES)]
    uc = Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.mem_map(0x1000, 0x2000)
    function = 0x1800
    uc.mem_write(function, bytes.fromhex(FUNCTION))
    code = bytearray()
    for value in VALUES:
        code += b"\xc6\x05" + (function + 1).to_bytes(4, "little") + bytes([value])
        code += (
            b"\xe8" + (function - (0x1000 + len(code) + 5)).to_bytes(4, "little", signed=True) + b"\x01\xc3"
        )
    uc.mem_write(0x1000, bytes(code))
    uc.reg_write(unicorn.x86_const.UC_X86_REG_ESP, 0x2800)
    uc.emu_start(0x1000, 0x1000 + len(code))
    assert uc.reg_read(UC_X86_REG_EBX) == sum(VALUES)


def test_without_it_code_still_changes_where_it_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvcore.cpu.code_pages._track", lambda *_: False)
    untracked = PvCpu(abi_module.PV64)
    assert not untracked.engine.code_pages.known
    assert patched_calls(untracked, TARGET) == [sum(VALUES)]
    untracked.engine.close()
    monkeypatch.setattr("hvcore.cpu.engine.core", lambda: None)
    bare = PvCpu(abi_module.PV64)
    assert not bare.engine.native_pacing
    assert patched_calls(bare, TARGET) == [sum(VALUES)]
    bare.engine.close()

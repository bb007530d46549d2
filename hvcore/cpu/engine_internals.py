"""Functions of the Unicorn library beyond its documented API, used where a build exports them.

The wheels export all of QEMU's functions. Three of them give what the API lacks: a flush of one page, the
dropping of code by physical address, and hardware breakpoints. One is needed for correctness: Unicorn lets
every ring do port I/O, and only an exception raised from inside the library can turn that into the #GP that
a PV guest must get. Others make it faster by leaving out what this engine does not need. Every one of them
is looked up by name and may be missing.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

from hvcore.cpu.compiled import address_of_routine
from hvcore.cpu.patches import PATCHES, take_over
from hvcore.cpu.process_memory import address_of, function, jump_slot

if TYPE_CHECKING:
    from hvcore.cpu.words import EngineWords


class Internals:
    """`cpu` and `env` are the addresses of the library's CPUState and CPUX86State (0: not found).

    `plain`: as if the library exported none of them.
    """

    def __init__(
        self, lib: ctypes.CDLL, uc: ctypes.c_void_p, cpu: int, env: int, *, plain: bool = False
    ) -> None:
        self._lib = lib
        self._uc = uc
        self._core: ctypes.CDLL | None = None
        self._words: EngineWords | None = None
        self._cpu = ctypes.c_void_p(cpu)
        self._env = ctypes.c_void_p(env)
        self._flush_page = function(lib, "tlb_flush_page") if cpu and not plain else None
        self._drop_code = function(lib, "tb_invalidate_phys_range") if not plain else None
        self._update_dr7 = function(lib, "cpu_x86_update_dr7") if env and not plain else None
        self._raise = function(lib, "raise_exception_err") if env and not plain else None
        self.has_flush_page = self._flush_page is not None
        self.has_update_dr7 = self._update_dr7 is not None
        self.is_lean = False  # whether checks are left out of blocks

    def flush_page(self, address: int) -> None:
        """Drop the translation of one page."""
        if self._flush_page is not None:
            self._flush_page(self._cpu, ctypes.c_uint64(address))

    def drop_code(self, start: int, end: int) -> bool:
        """Drop what was translated from physical [start, end); False if this build cannot."""
        if self._drop_code is None:
            return False
        self._drop_code(self._uc, ctypes.c_uint64(start), ctypes.c_uint64(end))
        return True

    def update_dr7(self, value: int) -> None:
        """Set DR7 and arm the breakpoints that it enables."""
        if self._update_dr7 is not None:
            self._update_dr7(self._env, ctypes.c_uint32(value))

    def use_core(self, core: ctypes.CDLL, words: EngineWords) -> None:
        """Tell the compiled core what it calls of the library."""
        self._core = core
        self._words = words
        words.uc = self._uc.value or 0
        words.cpu = self._cpu.value or 0
        words.env = self._env.value or 0
        words.uc_reg_read = address_of(self._lib.uc_reg_read)
        compute_all = function(self._lib, "cpu_cc_compute_all")
        words.cc_compute_all = address_of(compute_all) if compute_all else 0
        words.uc_emu_stop = address_of(self._lib.uc_emu_stop)
        words.raise_exception_err = address_of(self._raise) if self._raise else 0
        flush = function(self._lib, "tlb_flush")
        words.tlb_flush = address_of(flush) if flush else 0
        to_host = function(self._lib, "tlb_vaddr_to_host")
        words.tlb_vaddr_to_host = address_of(to_host) if to_host else 0
        lookup, leave = (function(self._lib, name) for name in ("tcg_tb_lookup", "cpu_loop_exit_restore"))
        words.tcg_tb_lookup = address_of(lookup) if lookup else 0
        words.cpu_loop_exit_restore = address_of(leave) if leave else 0
        if not core.hv_register(ctypes.byref(words)):
            raise MemoryError

    def io_callbacks(self) -> tuple[str, str] | None:
        """The core's callbacks for the `in` and `out` hooks; None without the means.

        They are compiled because the exception leaves by longjmp, which no Python frame may be under.
        """
        return ("hv_in", "hv_out") if self._core is not None and self._raise is not None else None

    def pacing_callback(self) -> str | None:
        """The core's block hook that counts down; None without the core."""
        if self._core is None:
            return None
        lean = lean_translation(self._lib, self._core)
        self.is_lean = lean is not None
        return lean or "hv_pace"

    def close(self) -> None:
        """Before the engine goes: its addresses may become another's."""
        if self._core is not None and self._words is not None:
            self._core.hv_unregister(ctypes.byref(self._words))


_TCG_FUNCTIONS = (
    "tcg_gen_callN", "helper_check_exit_request", "tcg_temp_new_internal", "tcg_temp_free_internal",
    "tcg_gen_extu_i32_i64", "tcg_const_i32", "tcg_const_i64", "tcg_emit_op", "tcg_gen_op1", "tcg_gen_op3",
    "tcg_gen_brcond_i64", "gen_new_label", "helper_lookup_tb_ptr",
    "tcg_tb_phys_invalidate_count",
)  # fmt: skip


@cache
def lean_translation(lib: ctypes.CDLL, core: ctypes.CDLL) -> str | None:
    """Make the translators of this process leave checks out of blocks that pace themselves; their block hook.

    Unicorn has them call check_exit_request at the head of each block and after each access to memory, so
    that registers do not stay in registers. The way from the translator to tcg_gen_callN is one jump slot;
    what is put there drops those calls (core/translate.c), and generates the count into the block where it
    knows this library's translator. None where the library or the host does not allow it.
    """
    check, generate = function(lib, "helper_check_exit_request"), function(lib, "tcg_gen_callN")
    slot = jump_slot(lib, address_of(generate)) if check and generate else 0
    if not check or not generate or not slot:
        return None
    found = [function(lib, name) for name in _TCG_FUNCTIONS]
    hooks = getattr(lib, "helper_uc_tracecode", None)  # the one for all kinds of guest
    addresses = (ctypes.c_uint64 * (len(found) + 1))(
        *(address_of(one) if one else 0 for one in (*found, hooks))
    )
    core.hv_set_check_exit_request(ctypes.c_void_p(address_of(check)))
    core.hv_set_tcg_functions(addresses)
    PATCHES.patch(slot, address_of_routine(core, "hv_gen_call"))
    if not all(found) or not _numbers_operations_alike(lib, core):
        return "hv_pace_and_leave"
    _keep_jumps_out_that_have_no_target(lib, core)
    _find_blocks(lib, core)
    return "hv_count"


def _keep_jumps_out_that_have_no_target(lib: ctypes.CDLL, core: ctypes.CDLL) -> None:
    """Have the core see to the jumps between blocks, if it can (core/branches.c)."""
    link = function(lib, "tb_set_jmp_target")
    slot = jump_slot(lib, address_of(link)) if link else 0
    if link and slot and core.hv_set_link_function(ctypes.c_void_p(address_of(link))):
        PATCHES.patch(slot, address_of_routine(core, "hv_set_jmp_target"))


def _find_blocks(lib: ctypes.CDLL, core: ctypes.CDLL) -> None:
    """Have the core find blocks for the library, if it can (core/blocks.c)."""
    names = {"tb_htable_lookup": "hv_find_block", "tb_flush": "hv_flush_blocks"}
    if take_over(lib, core, names, tell="hv_set_block_functions", also=("get_page_addr_code",)):
        names = {"tcg_tb_lookup": "hv_find_code", "tcg_tb_remove": "hv_remove_block"}
        take_over(lib, core, names, tell="hv_set_code_functions")  # a flush has to be seen by it, too


def _numbers_operations_alike(lib: ctypes.CDLL, core: ctypes.CDLL) -> bool:
    """Whether the core knows the numbers of this library's operations: tcg_const_i64() loads one of them."""
    number = ctypes.c_uint64.in_dll(core, "hv_op_movi_i64").value
    code = ctypes.string_at(address_of(lib.tcg_const_i64_x86_64), _CONST_CODE)
    version = lib.uc_version(None, None) >> 8
    return version == _KNOWN_VERSION and bytes((_MOV_ESI, number, 0, 0, 0)) in code


_CONST_CODE = 64  # bytes of tcg_const_i64() to look at
_MOV_ESI = 0xBE  # `mov esi, imm32`
_KNOWN_VERSION = 0x020104

"""Machine code of a few instructions that the engine's hot paths call instead of Python.

Each routine is a list of instruction bytes in hexadecimal with the instruction beside them; an integer stands
for itself in eight bytes, `:name` is a label and `>name` the one-byte distance to it. All follow the System V
calling convention: arguments in RDI, RSI, RDX, RCX, R8, the result in RAX. Where executable memory cannot be
had, or the host is no x86-64, there is none of this, and the engine does without.
"""

from __future__ import annotations

import ctypes
import mmap
import platform

# The words of what port_callback() is given.
PORTS_ENV, PORTS_HFLAGS, PORTS_RING, PORTS_CELL, PORTS_COST, PORTS_READS, PORTS_WRITES, PORTS_WORDS = range(8)
NO_RING = 0xFFFFFFFF

# The words of an engine's block, and how it is found.
BLOCK_CPU, BLOCK_ACCESS, BLOCK_BASE, BLOCK_PAGES, BLOCK_CODE, BLOCK_WORDS = range(6)
MAPPING_MAGIC, MAPPING_ENTRY = 8, 16
MAGIC = 0x65726F637668  # "hvcore"


class NativeCode:
    """Executable memory with `routines` in it, at `addresses`. Raises OSError where it cannot be had."""

    def __init__(self, *routines: bytes) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise OSError("the routines are for x86-64")
        try:
            prot = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=prot)
        except ValueError as error:
            raise OSError(str(error)) from None
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        at = 0
        self.addresses: list[int] = []
        for routine in routines:
            self._page[at : at + len(routine)] = routine
            self.addresses.append(base + at)
            at += len(routine) + 15 & ~15


def native_code(*routines: bytes) -> NativeCode | None:
    """The routines in executable memory; None where the host has none."""
    try:
        return NativeCode(*routines)
    except OSError:
        return None


def assemble(*parts: str | int) -> bytes:
    """The bytes of a routine, its labels resolved. Raises OverflowError for a label too far away."""
    code = bytearray()
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for part in parts:
        if isinstance(part, int):
            code += part.to_bytes(8, "little")
            continue
        for token in part.split():
            if token[0] == ":":
                labels[token[1:]] = len(code)
            elif token[0] == ">":
                jumps.append((len(code), token[1:]))
                code.append(0)
            else:
                code += bytes.fromhex(token)
    for at, label in jumps:
        code[at : at + 1] = (labels[label] - at - 1).to_bytes(1, "little", signed=True)
    return bytes(code)


def pacing_callback(uc_emu_stop: int) -> bytes:
    """UC_HOOK_BLOCK(uc, address, size, cell): `if (left <= limit) uc_emu_stop(uc); else left -= size`.

    A block that is not executed is not paid for: a stop at a time is at the first block at whose head it has
    come, whatever other stops there were before. The words are clock.CELL_*.
    """
    return assemble(
        "89 d2",            # mov edx, edx
        *_PAY_OR_JUMP,
        ":leave 48 b8", uc_emu_stop,  # mov rax, uc_emu_stop
        "ff e0",            # jmp rax
    )  # fmt: skip


_PAY_OR_JUMP = (
    "48 8b 01",         # mov rax, [rcx + 8 * CELL_LEFT]
    "48 3b 41 10",      # cmp rax, [rcx + 8 * CELL_LIMIT]
    "7e >leave",        # jle leave
    "48 29 11",         # sub [rcx + 8 * CELL_LEFT], rdx
    "c3",               # ret
)  # fmt: skip


def leaving_pacing_callback(uc_emu_stop: int, check_exit_request: int) -> bytes:
    """The same, but it leaves the block at once: check_exit_request(uc, 0) after uc_emu_stop(uc).

    That helper leaves by the address that it would return to, so it is jumped to and not called.
    """
    return assemble(
        "89 d2",            # mov edx, edx
        *_PAY_OR_JUMP,
        ":leave 57",        # push rdi
        "48 b8", uc_emu_stop,  # mov rax, uc_emu_stop
        "ff d0",            # call rax
        "5f",               # pop rdi
        "31 f6",            # xor esi, esi
        "48 b8", check_exit_request,  # mov rax, check_exit_request
        "ff e0",            # jmp rax
    )  # fmt: skip


def call_filter(pacing: int, check_exit_request: int, cell: int, tcg_gen_call: int) -> bytes:
    """tcg_gen_callN(context, function, ...), but no call of check_exit_request right after one of `pacing`.

    The context that had `pacing` last is in `cell`; translators that do not pace keep their check.
    """
    return assemble(
        "49 bb", cell,      # mov r11, cell
        "49 ba", pacing,    # mov r10, pacing
        "4c 39 d6",         # cmp rsi, r10
        "74 >remember",     # je remember
        "49 ba", check_exit_request,  # mov r10, check_exit_request
        "4c 39 d6",         # cmp rsi, r10
        "75 >generate",     # jne generate
        "49 39 3b",         # cmp [r11], rdi
        "75 >generate",     # jne generate
        "c3",               # ret
        ":remember 49 89 3b",  # mov [r11], rdi
        ":generate 48 b8", tcg_gen_call,  # mov rax, tcg_gen_callN
        "ff e0",            # jmp rax
    )  # fmt: skip


def port_callback(raise_exception_err: int, *, out: bool) -> bytes:
    """in(uc, port, size, ports) and out(uc, port, size, value, ports), `ports` as `PORTS_*` say.

    In the ring that is open there is nothing behind a port: a read gives ones, a write is lost, each is
    counted and takes its time. Otherwise, and for the ports that Xen keeps (0x70 and 0xcf8,
    and what is so near that a wider access reaches it), raise_exception_err(env, 13, 0): #GP.
    """
    return assemble(
        "4c 89 c1" if out else "",  # mov rcx, r8
        "48 8b 41 08",      # mov rax, [rcx + PORTS_HFLAGS]
        "8b 00",            # mov eax, [rax]
        "83 e0 03",         # and eax, 3
        "3b 41 10",         # cmp eax, [rcx + PORTS_RING]
        "75 >fault",        # jne fault
        "8d 46 93",         # lea eax, [rsi - 0x6d]
        "83 f8 03",         # cmp eax, 3
        "76 >fault",        # jbe fault
        "81 fe f8 0c 00 00",  # cmp esi, 0xcf8
        "74 >fault",        # je fault
        "48 ff 41 30" if out else "48 ff 41 28",  # inc qword [rcx + PORTS_WRITES or PORTS_READS]
        "4c 8b 51 18",      # mov r10, [rcx + PORTS_CELL]
        "48 8b 41 20",      # mov rax, [rcx + PORTS_COST]
        "49 29 02",         # sub [r10 + 8 * CELL_LEFT], rax
        "49 01 42 08",      # add [r10 + 8 * CELL_SPENT], rax
        "b8 ff ff ff ff",   # mov eax, -1
        "c3",               # ret
        ":fault 48 8b 39",  # mov rdi, [rcx + PORTS_ENV]
        "be 0d 00 00 00",   # mov esi, 13
        "31 d2",            # xor edx, edx
        "48 b8", raise_exception_err,  # mov rax, raise_exception_err
        "ff e0",            # jmp rax
    )  # fmt: skip


def syscall_callback(uc_reg_read: int, eflags: int, regs: int, rip: int, callback: int) -> bytes:
    """UC_HOOK_INSN(uc, data) for `syscall`: RCX = RIP behind it, R11 = RFLAGS without RF, then `callback`.

    `regs` is the address of the general registers, `rip` how far behind it RIP lies, `eflags` the number by
    which uc_reg_read() knows the flags.
    """
    return assemble(
        "57",               # push rdi
        "56",               # push rsi
        "48 83 ec 08",      # sub rsp, 8
        "be " + eflags.to_bytes(4, "little").hex(),  # mov esi, eflags
        "48 ba", regs + 8 * 11,  # mov rdx, &R11
        "48 c7 02 00 00 00 00",  # mov qword [rdx], 0
        "48 b8", uc_reg_read,  # mov rax, uc_reg_read
        "ff d0",            # call rax
        "48 b9", regs,      # mov rcx, regs
        "81 61 58 d7 7f 3e 00",  # and dword [rcx + R11], ~RF and what is no flag
        "83 49 58 02",      # or dword [rcx + R11], 2
        "48 8b 81 " + _disp32(rip),  # mov rax, [rcx + RIP]
        "48 83 c0 02",      # add rax, 2
        "48 89 41 08",      # mov [rcx + RCX], rax
        "48 83 c4 08",      # add rsp, 8
        "5e",               # pop rsi
        "5f",               # pop rdi
        "48 b8", callback,  # mov rax, callback
        "ff e0",            # jmp rax
    )  # fmt: skip


def division_handler(idiv: int, size: int, otherwise: int, signal: int, again: int) -> bytes:
    """A handler of SIGFPE(number, info, context): step over the instruction at `idiv`, of `size` bytes.

    What was raised anywhere else goes to the handler `otherwise`; where that is SIG_DFL or SIG_IGN, SIGFPE
    becomes SIG_DFL by `signal`, and is raised again by `again`.
    """
    return assemble(
        "48 b8", idiv,      # mov rax, idiv
        "48 39 82 a8 00 00 00",  # cmp [rdx + REG_RIP], rax
        "75 >other",        # jne other
        f"48 83 82 a8 00 00 00 {size:02x}",  # add qword [rdx + REG_RIP], size
        "c3",               # ret
        ":other 48 b8", otherwise,  # mov rax, otherwise
        "48 83 f8 01",      # cmp rax, SIG_IGN
        "76 >default",      # jbe default
        "ff e0",            # jmp rax
        ":default 57",      # push rdi
        "31 f6",            # xor esi, esi
        "48 b8", signal,    # mov rax, signal
        "ff d0",            # call rax
        "5f",               # pop rdi
        "48 b8", again,     # mov rax, again
        "ff e0",            # jmp rax
    )  # fmt: skip


def memory_mapping(block: int, base: int, size: int, region: int) -> bytes:
    """`region` for a physical address in [base, base + size), else NULL; called with (uc, address).

    The routine begins at MAPPING_ENTRY. Before it lie the address of the block (BLOCK_*) and at MAPPING_MAGIC
    a word that is to be MAGIC for an engine whose code pages are tracked: so other routines find its block.
    """
    return assemble(
        block,
        0,
        "48 b8", base,      # mov rax, base
        "48 29 c6",         # sub rsi, rax
        "48 b8", size,      # mov rax, size
        "48 39 c6",         # cmp rsi, rax
        "73 >none",         # jae none
        "48 b8", region,    # mov rax, region
        "c3",               # ret
        ":none 31 c0",      # xor eax, eax
        "c3",               # ret
    )  # fmt: skip


def _find_block(mapping: int, uc: int | None = None) -> tuple[str | int, ...]:
    """RAX = the block of the engine whose handle RDI is, or whose CPU with the handle at `uc`; or `other`."""
    return (
        "48 89 f8" if uc is None else "48 8b 87 " + _disp32(uc),  # mov rax, rdi or [rdi + uc]
        "48 8b 80 " + _disp32(mapping),  # mov rax, [rax + mapping]
        "49 ba", MAGIC,     # mov r10, MAGIC
        "4c 39 50 f8",      # cmp [rax - 8], r10
        "75 >other",        # jne other
        "48 8b 40 f0",      # mov rax, [rax - 16]
    )  # fmt: skip


def _disp32(offset: int) -> str:
    return offset.to_bytes(4, "little").hex()


def tlb_fill(block: int, original: int) -> bytes:
    """Note the kind of access for set_page(); called with (cpu, address, size, access, ...)."""
    return assemble(
        "48 b8", block,     # mov rax, block
        "89 48 08",         # mov [rax + BLOCK_ACCESS], ecx
        "48 b8", original,  # mov rax, original
        "ff e0",            # jmp rax
    )  # fmt: skip


def set_page(uc: int, mapping: int, original: int) -> bytes:
    """Another `prot` for a data access; called with (cpu, address, physical, attrs, prot, ...).

    A page that holds no translated code is not executable until it is executed. One that does, and is not
    executable here, is looked up anew for each store (PAGE_WRITE_INV).
    """
    return assemble(
        *_find_block(mapping, uc),
        "83 78 08 02",      # cmp dword [rax + BLOCK_ACCESS], MMU_INST_FETCH
        "74 >other",        # je other
        "49 89 d2",         # mov r10, rdx
        "4c 2b 50 10",      # sub r10, [rax + BLOCK_BASE]
        "49 c1 ea 0c",      # shr r10, 12
        "4c 3b 50 18",      # cmp r10, [rax + BLOCK_PAGES]
        "73 >other",        # jae other
        "4c 8b 58 20",      # mov r11, [rax + BLOCK_CODE]
        "43 80 3c 13 00",   # cmp byte [r11 + r10], 0
        "75 >code",         # jne code
        "41 83 e0 fb",      # and r8d, ~PAGE_EXEC
        "eb >other",        # jmp other
        ":code 41 f6 c0 04",  # test r8b, PAGE_EXEC
        "75 >other",        # jnz other
        "41 83 c8 40",      # or r8d, PAGE_WRITE_INV
        ":other 48 b8", original,  # mov rax, original
        "ff e0",            # jmp rax
    )  # fmt: skip


def _mark_page(mapping: int, mark: int, original: int, *then: str | int) -> bytes:
    """Set the mark of the page that RSI is in; `then` runs with the block in RAX."""
    return assemble(
        *_find_block(mapping),
        "48 c1 ee 0c",      # shr rsi, 12
        "48 3b 70 18",      # cmp rsi, [rax + BLOCK_PAGES]
        "73 >none",         # jae none
        "4c 8b 58 20",      # mov r11, [rax + BLOCK_CODE]
        f"41 c6 04 33 {mark:02x}",  # mov byte [r11 + rsi], mark
        *then,
        ":none c3",         # ret
        ":other 48 b8", original,  # mov rax, original
        "ff e0",            # jmp rax
    )  # fmt: skip


def protect_code(mapping: int, original: int, tlb_flush: int) -> bytes:
    """The page has its first code: drop the TLB, which may have it as clean; called with (uc, address)."""
    return _mark_page(
        mapping, 1, original,
        "48 8b 38",         # mov rdi, [rax + BLOCK_CPU]
        "48 b8", tlb_flush,  # mov rax, tlb_flush
        "ff e0",            # jmp rax
    )  # fmt: skip


def unprotect_code(mapping: int, original: int) -> bytes:
    """The page has no code any more; called with (uc, address)."""
    return _mark_page(mapping, 0, original)


def nothing_to_reset(uc: int, mapping: int, original: int) -> bytes:
    """What set_page() and protect_code() leave of tlb_reset_dirty_by_vaddr(); called with (cpu, ...)."""
    return assemble(
        *_find_block(mapping, uc),
        "c3",               # ret
        ":other 48 b8", original,  # mov rax, original
        "ff e0",            # jmp rax
    )  # fmt: skip

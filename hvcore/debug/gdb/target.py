"""What GDB is told of the processor: its registers, in GDB's order, as a target description.

Source: "Standard Target Features" in GDB's manual, gdb/features/i386/*.xml.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hvcore.debug.registers import RegisterFile

_CORE64 = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    *(f"r{n}" for n in range(8, 16)), "rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs",
)  # fmt: skip
_CORE32 = (
    "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi",
    "eip", "eflags", "cs", "ss", "ds", "es", "fs", "gs",
)  # fmt: skip
_FPU = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_POINTERS = {"rip": "code_ptr", "eip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr", "esp": "data_ptr"}
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
_XEN = ("kernel_mode", "event_pending", "event_mask", "vcpu_id")
_EFLAGS = """<flags id="i386_eflags" size="4"><field name="" start="22" end="31"/>""" + "".join(
    f'<field name="{name}" start="{bit}" end="{bit}"/>'
    for name, bit in (
        ("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10),
        ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21),
    )
) + "</flags>"  # fmt: skip
_MXCSR_BITS = ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM")
_MXCSR = (
    """<flags id="i386_mxcsr" size="4">"""
    + "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for bit, name in enumerate(_MXCSR_BITS))
    + """<field name="FZ" start="15" end="15"/></flags>"""
)
_VECTORS = "".join(
    f'<vector id="{name}" type="{kind}" count="{count}"/>'
    for name, kind, count in (
        ("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16), ("v8i16", "int16", 8),
        ("v4i32", "int32", 4), ("v2i64", "int64", 2),
    )
) + '<union id="vec128">' + "".join(
    f'<field name="{name}" type="{kind}"/>'
    for name, kind in (
        ("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"), ("v8_int16", "v8i16"),
        ("v4_int32", "v4i32"), ("v2_int64", "v2i64"), ("uint128", "uint128"),
    )
) + "</union>"  # fmt: skip


@dataclass(frozen=True, slots=True)
class Register:
    """One register: its name (ours and GDB's), its width, and its type in the description."""

    name: str
    bits: int
    kind: str


@dataclass(frozen=True, slots=True)
class Target:
    """The registers by GDB's numbers, and the description as XML."""

    registers: tuple[Register, ...]
    xml: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names by number."""
        return tuple(register.name for register in self.registers)

    def value(self, file: RegisterFile, number: int) -> bytes:
        """A register as GDB wants it: in the target's byte order."""
        register = self.registers[number]
        value = file.read(register.name) or 0
        return (value & (1 << register.bits) - 1).to_bytes(register.bits // 8, "little")


def _features(*, is_64bit: bool) -> Iterator[tuple[str, str, list[Register]]]:
    """The features: name, types, registers."""
    word = 64 if is_64bit else 32
    core = []
    for name in _CORE64 if is_64bit else _CORE32:
        flags, segment = name == "eflags", name in ("cs", "ss", "ds", "es", "fs", "gs")
        kind = "i386_eflags" if flags else "int32" if segment else _POINTERS.get(name, f"int{word}")
        core.append(Register(name, 32 if flags or segment else word, kind))
    core += [Register(f"st{i}", 80, "i387_ext") for i in range(8)]
    core += [Register(name, 32, "int") for name in _FPU]
    yield "org.gnu.gdb.i386.core", _EFLAGS, core
    sse = [Register(f"xmm{i}", 128, "vec128") for i in range(16 if is_64bit else 8)]
    yield "org.gnu.gdb.i386.sse", _VECTORS + _MXCSR, [*sse, Register("mxcsr", 32, "i386_mxcsr")]
    if is_64bit:
        bases = [Register(name, 64, "int64") for name in ("fs_base", "gs_base")]
        yield "org.gnu.gdb.i386.segments", "", bases
    control = [Register(name, word, f"int{word}") for name in _CONTROL]
    xen = [Register(name, 32, "int32") for name in _XEN]
    if is_64bit:
        xen.insert(0, Register("k_gs_base", 64, "int64"))
    yield "org.xenproject.x86.pv", "", control + xen


@cache
def target(*, is_64bit: bool) -> Target:
    """The description of a guest of that width."""
    registers: list[Register] = []
    parts = []
    for feature, types, found in _features(is_64bit=is_64bit):
        group = ' group="system"' if "xen" in feature else ""
        listed = "".join(
            f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.kind}" regnum="{len(registers) + i}"{group}/>'
            for i, r in enumerate(found)
        )
        parts.append(f'<feature name="{feature}">{types}{listed}</feature>')
        registers += found
    architecture = "i386:x86-64" if is_64bit else "i386"
    xml = (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
        f"<architecture>{architecture}</architecture>{''.join(parts)}</target>"
    )
    return Target(tuple(registers), xml)

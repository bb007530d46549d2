/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * PRIVILEGED INSTRUCTIONS. In ring 1 they fault, and Xen emulates them: right for what is rare. What is not
 * rare has a better way in each of the other files: events.c for cli and sti, user_memory.c for invlpg,
 * sched.c for mov to cr3, segments.c for lgdt.
 *
 * cpuid is not privileged and so would show the bare processor. With Xen's prefix (ud2a; .ascii "xen") in front
 * of it, it traps, and Xen answers; what the rest of the kernel must not believe in is then masked here.
 */
#include "kernel.h"

#define LEAF_FEATURES 1
#define EDX_APIC (1u << 9)
#define EDX_ACPI (1u << 22)
#define LEAF_EXTENDED 0x80000001u
#define EDX_NX (1u << 20)
#define LEAF_XEN 0x40000000u

void cpuid(u32 leaf, u32 regs[4])
{
    u32 masked = leaf == LEAF_FEATURES ? EDX_APIC | EDX_ACPI : 0;
    __asm__ volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\tcpuid"
                     : "=a"(regs[0]), "=b"(regs[1]), "=c"(regs[2]), "=d"(regs[3])
                     : "a"(leaf), "c"(0));
    regs[3] &= ~masked;
}

int cpu_has_nx(void)
{
    u32 regs[4];
    cpuid(LEAF_EXTENDED, regs);
    return !!(regs[3] & EDX_NX);
}

ulong read_cr0(void)
{
    ulong value;
    __asm__ volatile("mov %%cr0, %0" : "=r"(value));
    return value;
}

#define CR0_PE 0x1ul
#define CR0_PG 0x80000000ul

void cpu_report(void)
{
    char name[13] = "";
    u32 regs[4];
    cpuid(LEAF_XEN, regs);
    memcpy(name, regs + 1, 12);
    cpuid(LEAF_FEATURES, regs);
    printf("cpuid: %s; APIC %s, ACPI %s\n", name, regs[3] & EDX_APIC ? "seen" : "hidden",
           regs[3] & EDX_ACPI ? "seen" : "hidden");
    printf("privileged: mov %%cr0 in ring 1 was emulated, and shows %s\n",
           (read_cr0() & (CR0_PE | CR0_PG)) == (CR0_PE | CR0_PG) ? "protection and paging" : "nonsense");
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Privileged instructions of user mode: #GP from each, and the kernel's state as it was";

#define MAX_CODE 8
static const struct {
    u8 size, code[MAX_CODE];
} instructions[] = {
    { 1, { 0xfa } },                   /* cli */
    { 1, { 0xfb } },                   /* sti */
    { 1, { 0xf4 } },                   /* hlt */
    { 2, { 0x0f, 0x06 } },             /* clts */
    { 2, { 0x0f, 0x08 } },             /* invd */
    { 2, { 0x0f, 0x09 } },             /* wbinvd */
    { 2, { 0x0f, 0x30 } },             /* wrmsr */
    { 2, { 0x0f, 0x32 } },             /* rdmsr */
    { 3, { 0x0f, 0x00, 0xd0 } },       /* lldt %ax */
    { 3, { 0x0f, 0x00, 0xd8 } },       /* ltr %ax */
    { 3, { 0x0f, 0x01, 0x10 } },       /* lgdt (%eax) */
    { 3, { 0x0f, 0x01, 0x18 } },       /* lidt (%eax) */
    { 3, { 0x0f, 0x01, 0x38 } },       /* invlpg (%eax) */
    { 3, { 0x0f, 0x01, 0xf0 } },       /* lmsw %ax */
    { 3, { 0x0f, 0x20, 0xc0 } },       /* mov %cr0, %eax */
    { 3, { 0x0f, 0x20, 0xd0 } },       /* mov %cr2, %eax */
    { 3, { 0x0f, 0x20, 0xd8 } },       /* mov %cr3, %eax */
    { 3, { 0x0f, 0x20, 0xe0 } },       /* mov %cr4, %eax */
    { 3, { 0x0f, 0x22, 0xc0 } },       /* mov %eax, %cr0 */
    { 3, { 0x0f, 0x22, 0xd0 } },       /* mov %eax, %cr2 */
    { 3, { 0x0f, 0x22, 0xd8 } },       /* mov %eax, %cr3 */
    { 3, { 0x0f, 0x22, 0xe0 } },       /* mov %eax, %cr4 */
    { 3, { 0x0f, 0x21, 0xf8 } },       /* mov %db7, %eax */
    { 3, { 0x0f, 0x23, 0xc0 } },       /* mov %eax, %db0 */
    { 3, { 0x0f, 0x23, 0xf8 } },       /* mov %eax, %db7 */
    { 1, { 0xec } },                   /* in %dx, %al */
    { 1, { 0xed } },                   /* in %dx, %eax */
    { 1, { 0xee } },                   /* out %al, %dx */
    { 1, { 0xef } },                   /* out %eax, %dx */
    { 2, { 0xe4, 0x60 } },             /* in $0x60, %al */
    { 2, { 0xe6, 0x60 } },             /* out %al, $0x60 */
};

void conform(void)
{
    u8 code[MAX_CODE + 2];
    ulong base = virt_to_mfn((void *)start_info->pt_base), cr3;
    for (unsigned i = 0; i < ARRAY_SIZE(instructions); i++) {
        unsigned size = instructions[i].size;
        memcpy(code, instructions[i].code, size);
        code[size] = 0xcd; /* int $0x80 behind it */
        code[size + 1] = 0x80;
        struct trap trap = run_user(code, size + 2, 0);
        if (trap.vector != TRAP_GP)
            printf("instruction %u, %02x %02x:\n", i, code[0], code[1]);
        EXPECT_REFUSED(-(long)trap.vector, TRAP_GP);
        EXPECT_REFUSED(-(long)trap.error_code, 0);
        EXPECT_REFUSED(-(long)(trap.ip - user_code()), 0); /* at the instruction, not behind it */
    }
    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
    EXPECT_EQUAL(cr3 >> PAGE_SHIFT, base);
}

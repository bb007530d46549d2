/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "set_trap_table: what a row says, and how handlers are entered";

extern const ulong trap_entries[];

static void undefined(void *unused)
{
    (void)unused;
    __asm__ volatile("ud2");
}

static volatile u32 mask_on_entry;

static void note_mask(struct regs *regs)
{
    mask_on_entry = shared_info->vcpu_info[0].evtchn_upcall_mask;
    regs->ip += 2;
}

static long set(u8 vector, u8 flags, u16 cs, ulong address)
{
    struct trap_info table[] = { { vector, flags, cs, address }, { 0, 0, 0, 0 } };
    return HYPERCALL1(set_trap_table, table);
}

void conform(void)
{
    trap_handler(TRAP_UD, note_mask);
    events_enable();
    /* Bit 2 of the flags masks events on entry; the saved flags bring the old mask back. */
    EXPECT_OK(set(TRAP_UD, 0, FLAT_KERNEL_CS, trap_entries[TRAP_UD]));
    undefined(NULL);
    EXPECT_EQUAL(mask_on_entry, 0);
    EXPECT_OK(set(TRAP_UD, 4, FLAT_KERNEL_CS, trap_entries[TRAP_UD]));
    undefined(NULL);
    EXPECT_EQUAL(mask_on_entry, 1);
    EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_mask, 0);
    events_disable();

    EXPECT_REFUSED(HYPERCALL1(set_trap_table, 16), EFAULT);
#ifdef __x86_64__
    /* An address that is not canonical cannot be gone to (do_set_trap_table). */
    EXPECT_REFUSED(set(TRAP_UD, 0, FLAT_KERNEL_CS, 0x8000000000000000ul), EINVAL);
#endif
    /* NULL empties the table: the next fault of that kind has nowhere to go, so put it back first. */
    EXPECT_OK(HYPERCALL1(set_trap_table, 0));
    traps_init();
    undefined(NULL);
    EXPECT_EQUAL(mask_on_entry, 1);
}

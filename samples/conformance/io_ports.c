/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Ports: #GP below the I/O privilege level, nothing behind them with it, a bitmap for user mode";

static u32 read;
static u16 port;

static void in_byte(void *unused)
{
    u8 value;
    (void)unused;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port));
    read = value;
}

static void in_long(void *unused)
{
    u32 value;
    (void)unused;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "d"(port));
    read = value;
}

static void out_byte(void *unused)
{
    (void)unused;
    __asm__ volatile("outb %0, %1" : : "a"((u8)0x5a), "d"(port));
}

/* By an immediate port: %al alone, %ax alone, and all of it. */
static void in_fixed_byte(void *unused)
{
    ulong value = 0x12345678;
    (void)unused;
    __asm__ volatile("inb $0x55, %%al" : "+a"(value));
    read = (u32)value;
}

static void in_fixed_word(void *unused)
{
    ulong value = 0x12345678;
    (void)unused;
    __asm__ volatile("inw $0x55, %%ax" : "+a"(value));
    read = (u32)value;
}

static void in_fixed_long(void *unused)
{
    ulong value = (ulong)-1 / 3;
    (void)unused;
    __asm__ volatile("inl $0x54, %%eax" : "+a"(value));
    read = value == (u32)value; /* what is above is cleared */
}

static void in_string(void *at)
{
    __asm__ volatile("cld; insb" : "+D"(at) : "d"(port) : "memory");
}

static void out_fixed(void *unused)
{
    (void)unused;
    __asm__ volatile("outb %%al, $0x80" : : "a"(0));
}

static long set_iopl(u32 iopl)
{
    return HYPERCALL2(physdev_op, 6 /* PHYSDEVOP_set_iopl */, &iopl);
}

static long set_bitmap(void *bitmap, u32 ports)
{
    struct {
        void *bitmap;
        u32 nr_ports;
    } request = { bitmap, ports };
    return HYPERCALL2(physdev_op, 7 /* PHYSDEVOP_set_iobitmap */, &request);
}

static const u8 user_in[] = { 0xe4, 0x55, 0xcd, 0x80 }; /* in $0x55, %al; int $0x80 */
static const u8 user_out[] = { 0xe6, 0x55, 0xcd, 0x80 };

#define EXPECT_USER(code, wanted)                                \
    do {                                                         \
        struct trap trap = run_user(code, sizeof(code), 0x77);   \
        EXPECT_EQUAL(trap.vector, wanted);                       \
        EXPECT_EQUAL(trap.error_code, 0);                        \
    } while (0)

static u8 bitmap[8192] PAGE_ALIGNED;

void conform(void)
{
    u8 *page = alloc_page();
    port = 0x55; /* nothing lives there on a PC */
    /* guest_io_okay: the kernel counts as CPL 1 against its IOPL. */
    EXPECT_TRAP(in_byte, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_long, NULL, TRAP_GP, 0);
    EXPECT_TRAP(out_byte, NULL, TRAP_GP, 0);
    EXPECT_TRAP(out_fixed, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_fixed_byte, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_fixed_word, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_fixed_long, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_string, page, TRAP_GP, 0);
    count_refusal();
    count_refusal();
    EXPECT_USER(user_in, TRAP_GP);
    EXPECT_OK(set_iopl(1));
    EXPECT_NO_TRAP(in_byte, NULL);
    EXPECT_EQUAL(read, 0xff);
    EXPECT_NO_TRAP(in_long, NULL);
    if (!(start_info->flags & SIF_INITDOMAIN)) /* dom0 sees the machine (admin_io_okay) */
        EXPECT_EQUAL(read, 0xffffffff);
    EXPECT_NO_TRAP(out_byte, NULL);
    EXPECT_NO_TRAP(out_fixed, NULL);
    for (u32 times = 0; times < 3; times++) {
        EXPECT_NO_TRAP(in_fixed_byte, NULL);
        EXPECT_EQUAL(read, 0x123456ff);
    }
    EXPECT_NO_TRAP(in_fixed_word, NULL);
    EXPECT_EQUAL(read | 0xffff, 0x1234ffff); /* on a PC a word there is something else */
    EXPECT_NO_TRAP(in_fixed_long, NULL);
    EXPECT_EQUAL(read, 1);
    EXPECT_NO_TRAP(in_string, page);
    EXPECT_EQUAL(page[0], 0xff);
    count_refusal();
    count_refusal();
    EXPECT_USER(user_in, TRAP_GP); /* it takes an IOPL of 3 there */
    EXPECT_OK(set_iopl(3));
    EXPECT_USER(user_in, 0x80);
    EXPECT_USER(user_out, 0x80);
    EXPECT_OK(set_iopl(0));
    EXPECT_TRAP(in_fixed_byte, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_fixed_long, NULL, TRAP_GP, 0);
    EXPECT_TRAP(out_fixed, NULL, TRAP_GP, 0);
    EXPECT_TRAP(in_byte, NULL, TRAP_GP, 0);

    /* A bit that is clear opens a port to whoever runs. */
    memset(bitmap, 0xff, sizeof(bitmap));
    EXPECT_OK(set_bitmap(bitmap, 0x100));
    EXPECT_TRAP(in_byte, NULL, TRAP_GP, 0);
    bitmap[0x55 / 8] &= (u8)~(1u << (0x55 & 7));
    EXPECT_NO_TRAP(in_byte, NULL);
    EXPECT_TRAP(in_long, NULL, TRAP_GP, 0); /* its other ports are shut */
    EXPECT_USER(user_in, 0x80);
    EXPECT_OK(set_bitmap(bitmap, 0x55));
    EXPECT_TRAP(in_byte, NULL, TRAP_GP, 0); /* past the limit */
    EXPECT_REFUSED(set_bitmap(bitmap, 65537), EINVAL);
    EXPECT_REFUSED(set_iopl(4), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(physdev_op, 6, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(physdev_op, 7, 16), EFAULT);
    EXPECT_OK(set_bitmap(NULL, 0));
    EXPECT_TRAP(in_byte, NULL, TRAP_GP, 0);
}

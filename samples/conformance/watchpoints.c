/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Watchpoints: data breakpoints trap behind the access, whatever makes it";

/* DR7: enable bits of register n (local, global), and what it watches. */
#define LOCAL(n) (1ul << (2 * (n)))
#define GLOBAL(n) (2ul << (2 * (n)))
#define STORES(n) (1ul << (16 + 4 * (n)))
#define ACCESSES(n) (3ul << (16 + 4 * (n)))
#define BYTES_2(n) (1ul << (18 + 4 * (n)))
#define BYTES_4(n) (3ul << (18 + 4 * (n)))
#define BYTES_8(n) (2ul << (18 + 4 * (n)))
#define NONE 0x400ul

static volatile union {
    u32 word[4];
    u8 byte[16];
} watched __attribute__((aligned(16))), other __attribute__((aligned(16)));

static void store(void *unused)
{
    (void)unused;
    watched.word[0]++;
}

static void load(void *unused)
{
    (void)unused;
    (void)watched.word[0];
}

static void store_byte(void *which)
{
    watched.byte[(ulong)which] = 0x5a;
}

static void move(void *unused)
{
    const volatile void *from = watched.word;
    volatile void *to = other.word;

    (void)unused;
    __asm__ volatile("movsl" : "+S"(from), "+D"(to) : : "memory");
}

static void fill(void *count)
{
    volatile void *to = other.byte;

    __asm__ volatile("rep; stosb" : "+D"(to), "+c"(count) : "a"(7) : "memory");
}

static long set(int reg, ulong value)
{
    return HYPERCALL2(set_debugreg, reg, value);
}

static ulong met(void)
{
    ulong bits = HYPERCALL1(get_debugreg, 6) & 0xf;

    EXPECT_OK(set(6, 0));
    return bits;
}

static void whole_words(void)
{
    EXPECT_OK(set(1, (ulong)watched.word));
    EXPECT_OK(set(7, NONE | LOCAL(1) | STORES(1) | BYTES_4(1)));
    EXPECT_NO_TRAP(load, NULL);
    EXPECT_TRAP(store, NULL, TRAP_DB, 0);
    EXPECT_EQUAL(watched.word[0], 1);
    EXPECT_EQUAL(met(), 2);
    EXPECT_OK(set(7, NONE | GLOBAL(1) | ACCESSES(1) | BYTES_4(1)));
    EXPECT_TRAP(load, NULL, TRAP_DB, 0);
    EXPECT_EQUAL(met(), 2);
    EXPECT_TRAP(store, NULL, TRAP_DB, 0);
    EXPECT_EQUAL(met(), 2);
    EXPECT_OK(set(7, NONE));
    EXPECT_NO_TRAP(store, NULL);
    EXPECT_EQUAL(watched.word[0], 3);
    EXPECT_EQUAL(met(), 0);
}

static void parts_of_words(void)
{
    EXPECT_OK(set(2, (ulong)watched.byte + 1));
    EXPECT_OK(set(7, NONE | LOCAL(2) | STORES(2)));
    EXPECT_NO_TRAP(store_byte, 0);
    EXPECT_NO_TRAP(store_byte, 2);
    EXPECT_TRAP(store_byte, 1, TRAP_DB, 0);
    EXPECT_EQUAL(met(), 4);
    EXPECT_TRAP(store, NULL, TRAP_DB, 0);
    EXPECT_EQUAL(met(), 4);
    EXPECT_OK(set(2, (ulong)watched.byte + 2));
    EXPECT_OK(set(7, NONE | LOCAL(2) | STORES(2) | BYTES_2(2)));
    EXPECT_NO_TRAP(store_byte, 1);
    EXPECT_TRAP(store_byte, 3, TRAP_DB, 0);
    EXPECT_EQUAL(met(), 4);
    EXPECT_NO_TRAP(store_byte, 4);
#ifdef __x86_64__
    EXPECT_OK(set(2, (ulong)watched.byte));
    EXPECT_OK(set(7, NONE | LOCAL(2) | STORES(2) | BYTES_8(2)));
    EXPECT_TRAP(store_byte, 7, TRAP_DB, 0);
    EXPECT_NO_TRAP(store_byte, 8);
    EXPECT_EQUAL(met(), 4);
#endif
}

static void two_at_once(void)
{
    EXPECT_OK(set(0, (ulong)watched.word));
    EXPECT_OK(set(3, (ulong)other.word));
    EXPECT_OK(set(7, NONE | LOCAL(0) | ACCESSES(0) | BYTES_4(0) | LOCAL(3) | STORES(3) | BYTES_4(3)));
    watched.byte[4] = 0; /* beside it */
    EXPECT_TRAP(move, NULL, TRAP_DB, 0);
    EXPECT(met() & 9); /* a processor tells both, QEMU the first */
    EXPECT_OK(set(7, NONE));
    EXPECT_EQUAL(other.word[0], watched.word[0]);
}

static void repeated(void)
{
    EXPECT_OK(set(0, (ulong)other.byte + 8));
    EXPECT_OK(set(7, NONE | LOCAL(0) | STORES(0)));
    EXPECT_TRAP(fill, 16, TRAP_DB, 0);
    EXPECT_EQUAL(met(), 1);
    EXPECT_OK(set(7, NONE));
    EXPECT_EQUAL(other.byte[8], 7);
    EXPECT_EQUAL(other.byte[9], 0);
}

void conform(void)
{
    whole_words();
    parts_of_words();
    two_at_once();
    repeated();
}

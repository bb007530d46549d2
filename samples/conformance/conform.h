/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A conformance guest: conform() makes checks, each of which prints a line when it fails; the last line is
 * `Test result: SUCCESS|FAILURE|SKIP|ERROR`, as XTF's tests end. What a check expects is what Xen 4.17 does;
 * comments name the function in Xen's tree that decides.
 */
#ifndef SAMPLES_CONFORM_H
#define SAMPLES_CONFORM_H

#include "guest.h"

extern const char test_title[];
void conform(void);

void check_equal(const char *file, int line, const char *what, long got, long expected);
void check_true(const char *file, int line, const char *what, int holds);
void check_trap(const char *file, int line, const char *what, struct trap trap, ulong vector, ulong error);
void count_refusal(void);
/*
 * To be called last where the right end is another than a poweroff: `how` is "crashed" (Xen destroys the domain),
 * or a reason of shutdown ("reboot", "crash", "watchdog"...). The guest goes on to bring it about; whoever runs it
 * compares. It must not come back, so what follows in conform() is give_up().
 */
void expect_end(const char *how);
void skip(const char *why) __attribute__((noreturn));
void give_up(const char *why) __attribute__((noreturn));

/* A hypercall's return code; EXPECT_REFUSED takes the errno without its sign. */
#define EXPECT_RC(call, expected) check_equal(__FILE_NAME__, __LINE__, #call, (long)(call), (long)(expected))
#define EXPECT_OK(call) EXPECT_RC(call, 0)
#define EXPECT_REFUSED(call, error) (count_refusal(), EXPECT_RC(call, -(error)))
#define EXPECT(condition) check_true(__FILE_NAME__, __LINE__, #condition, !!(condition))
#define EXPECT_EQUAL(got, expected) check_equal(__FILE_NAME__, __LINE__, #got, (long)(got), (long)(expected))
/* What probe(function, argument) ended with: EXPECT_TRAP counts as a refusal, EXPECT_NO_TRAP does not. */
#define EXPECT_TRAP(function, argument, vector, error) \
    (count_refusal(), check_trap(__FILE_NAME__, __LINE__, #function "(" #argument ")", \
                                 probe(function, (void *)(argument)), vector, error))
#define EXPECT_NO_TRAP(function, argument) \
    check_trap(__FILE_NAME__, __LINE__, #function "(" #argument ")", probe(function, (void *)(argument)), NO_TRAP, 0)

/* Store a descriptor at a machine address, as the hypercall of either width wants it. */
static inline long update_descriptor(u64 at, u64 value)
{
#ifdef __x86_64__
    return HYPERCALL2(update_descriptor, at, value);
#else
    return HYPERCALL4(update_descriptor, at, at >> 32, value, value >> 32);
#endif
}

/* For probe(). */
static inline void load_gs(void *selector)
{
    __asm__ volatile("mov %w0, %%gs" : : "r"(selector));
}

#endif

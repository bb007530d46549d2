/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Calling Xen: number times 32 into the hypercall page, arguments in ebx, ecx, edx, esi and edi, the result in
 * eax. What the stub does (`int $0x82` here) is Xen's own business.
 */
#include "kernel.h"

long hypercall(ulong nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5)
{
    long result;
    __asm__ volatile("call *%%eax"
                     : "=a"(result), "+b"(a1), "+c"(a2), "+d"(a3), "+S"(a4), "+D"(a5)
                     : "0"(hypercall_page + 32 * nr)
                     : "memory", "cc");
    return result;
}

void shutdown(u32 reason)
{
    console_drain();
    for (;;)
        HYPERCALL2(sched_op, SCHEDOP_shutdown, &reason);
}

void panic(const char *why)
{
    printf("panic: %s\n", why);
    shutdown(SHUTDOWN_crash);
}

void must(long rc, const char *what)
{
    if (!rc)
        return;
    printf("%s: error %ld\n", what, rc);
    panic("Xen refused");
}

/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Traps: Xen has no IDT for its guests, it has a table of handlers that the guest hands over once.
 */
#include "guest.h"

extern const ulong trap_entries[20], entry_syscall;
extern u8 failsafe_entry[];
int probe_call(void (*function)(void *), void *argument);
void probe_escape(void) __attribute__((noreturn));
void from_xen(struct regs *regs);
void upcall(void);

#define SYSCALL_VECTOR 0x80
#define VECTOR_EVENT 0x100
#define VECTOR_FAILSAFE 0x101

static void (*handlers[256])(struct regs *regs);
static struct trap *probing;
static struct trap_info table[22];

void traps_init(void)
{
    struct callback_register failsafe = {
        .type = CALLBACKTYPE_failsafe,
#ifndef __x86_64__
        .cs = FLAT_KERNEL_CS,
#endif
        .address = (ulong)failsafe_entry,
    };
    for (u8 vector = 0; vector < ARRAY_SIZE(trap_entries); vector++) {
        u8 dpl = vector == TRAP_BP || vector == TRAP_OF ? 3 : 0;
        table[vector] = (struct trap_info){ vector, dpl, FLAT_KERNEL_CS, trap_entries[vector] };
    }
    table[ARRAY_SIZE(trap_entries)] = (struct trap_info){ SYSCALL_VECTOR, 3, FLAT_KERNEL_CS, entry_syscall };
    HYPERCALL1(set_trap_table, table);
    HYPERCALL2(callback_op, CALLBACKOP_register, &failsafe);
}

void trap_handler(unsigned vector, void (*handler)(struct regs *regs))
{
    handlers[vector & 255] = handler;
}

static void report(const struct regs *regs)
{
    printf("\nunexpected trap %lu, error code %lx, cr2 %lx\n", regs->vector, regs->error_code,
           shared_info->vcpu_info[0].cr2);
    printf("ip %lx cs %lx flags %lx\n", regs->ip, regs->cs, regs->flags);
    printf("ax %lx bx %lx cx %lx dx %lx si %lx di %lx bp %lx\n", regs->ax, regs->bx, regs->cx, regs->dx,
           regs->si, regs->di, regs->bp);
    shutdown(SHUTDOWN_crash);
}

void from_xen(struct regs *regs)
{
    if (regs->vector == VECTOR_EVENT) {
        upcall();
    } else if (probing) {
        struct trap *trap = probing;
        *trap = (struct trap){
            .vector = regs->vector,
            .error_code = regs->error_code,
            .cr2 = shared_info->vcpu_info[0].cr2,
            .ip = regs->ip,
        };
        /* From the same ring an i386 trap pushes no ss:esp; copying them is harmless, they are stack words. */
        trap->regs = *regs;
        probing = NULL;
        probe_escape();
    } else if (regs->vector < 256 && handlers[regs->vector]) {
        handlers[regs->vector](regs);
    } else {
        report(regs);
    }
}

struct trap probe(void (*function)(void *), void *argument)
{
    struct trap trap = { .vector = NO_TRAP };
    probing = &trap;
    barrier();
    probe_call(function, argument);
    barrier();
    probing = NULL;
    return trap;
}

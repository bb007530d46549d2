/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Event channels: two levels of pending bits in shared_info, one upcall, and a mask that stands for the
 * interrupt flag. Whoever unmasks has to look whether something came in while the mask was set.
 */
#include "guest.h"

#define WORD_BITS (sizeof(ulong) * 8)
#define MAX_PORTS 64

extern u8 event_entry[];
void upcall(void);

static void (*handlers[MAX_PORTS])(u32 port);
volatile ulong upcalls;

static volatile struct vcpu_info *vcpu0(void)
{
    return &shared_info->vcpu_info[0];
}

void events_init(void)
{
    struct callback_register event = {
        .type = CALLBACKTYPE_event,
#ifndef __x86_64__
        .cs = FLAT_KERNEL_CS,
#endif
        .address = (ulong)event_entry,
    };
    HYPERCALL2(callback_op, CALLBACKOP_register, &event);
    memset(shared_info->evtchn_mask, 0xff, sizeof(shared_info->evtchn_mask));
}

void events_disable(void)
{
    vcpu0()->evtchn_upcall_mask = 1;
    barrier();
}

void events_enable(void)
{
    barrier();
    vcpu0()->evtchn_upcall_mask = 0;
    barrier();
    if (vcpu0()->evtchn_upcall_pending)
        HYPERCALL2(xen_version, XENVER_version, 0); /* any hypercall delivers it on return */
}

void event_handler(u32 port, void (*handler)(u32 port))
{
    if (port < MAX_PORTS)
        handlers[port] = handler;
}

void event_unmask(u32 port)
{
    HYPERCALL2(event_channel_op, EVTCHNOP_unmask, &port);
}

/* Bind a virtual interrupt of vCPU 0 and unmask it; the port, or Xen's error. */
long event_bind_virq(u32 virq, void (*handler)(u32 port))
{
    struct {
        u32 virq, vcpu, port;
    } bind = { virq, 0, 0 };
    long error = HYPERCALL2(event_channel_op, EVTCHNOP_bind_virq, &bind);
    if (error)
        return error;
    event_handler(bind.port, handler);
    event_unmask(bind.port);
    return bind.port;
}

static ulong exchange(volatile ulong *word, ulong value)
{
    __asm__ volatile("xchg %0, %1" : "+r"(value), "+m"(*word) : : "memory");
    return value;
}

static void clear_bit(volatile ulong *word, unsigned bit)
{
    __asm__ volatile("lock; btr %1, %0" : "+m"(*word) : "r"((ulong)bit) : "memory", "cc");
}

void upcall(void)
{
    upcalls++;
    while (vcpu0()->evtchn_upcall_pending) {
        vcpu0()->evtchn_upcall_pending = 0;
        for (ulong words = exchange(&vcpu0()->evtchn_pending_sel, 0); words; words &= words - 1) {
            unsigned word = (unsigned)__builtin_ctzl(words);
            ulong ready = shared_info->evtchn_pending[word] & ~shared_info->evtchn_mask[word];
            for (; ready; ready &= ready - 1) {
                unsigned bit = (unsigned)__builtin_ctzl(ready);
                u32 port = (u32)(word * WORD_BITS + bit);
                clear_bit(&shared_info->evtchn_pending[word], bit);
                if (port < MAX_PORTS && handlers[port])
                    handlers[port](port);
            }
        }
    }
}

/*
 * To be called with events masked, as main() is, after looking for whatever is awaited: what comes in between
 * stays pending and ends the block at once. Returns, masked again, after at least one upcall.
 */
void event_wait(void)
{
    for (ulong before = upcalls; upcalls == before; events_disable())
        HYPERCALL2(sched_op, SCHEDOP_block, 0); /* unmasks, and sleeps unless something is pending */
}

static u64 read_tsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return ((u64)high << 32) | low;
}

u64 system_time(void)
{
    volatile struct vcpu_time_info *time = &vcpu0()->time;
    u32 version;
    u64 now;
    do {
        version = time->version;
        barrier();
        u64 delta = read_tsc() - time->tsc_timestamp;
        delta = time->tsc_shift < 0 ? delta >> -time->tsc_shift : delta << time->tsc_shift;
        u32 mul = time->tsc_to_system_mul;
        now = time->system_time + (((delta & 0xffffffff) * mul) >> 32) + (delta >> 32) * mul;
        barrier();
    } while ((version & 1) || version != time->version);
    return now;
}

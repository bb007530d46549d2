/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * INTERRUPT FLAGS. IF is the machine's, and what ring 1 does to it has no effect. What stands for it is a byte
 * in vcpu_info, and it means the opposite: non-zero masks events. Setting and clearing it takes one store and
 * no trap. But nobody watches the store: after unmasking we have to look whether an event came in meanwhile,
 * and if so go through Xen, which delivers it.
 *
 * UPCALLS. An event sets a bit for its port in shared_info, a bit for that word in vcpu_info, and
 * evtchn_upcall_pending; if that was clear, and events are not masked, Xen calls our event callback.
 */
#include "kernel.h"

#define WORD_BITS 32
#define MAX_PORTS 32

extern u8 entry_event[];

static void (*handlers[MAX_PORTS])(void);
static volatile int arrived;

static volatile struct vcpu_info *vcpu(void)
{
    return &shared_info->vcpu_info[0];
}

void irq_disable(void)
{
    vcpu()->evtchn_upcall_mask = 1;
    barrier();
}

void irq_enable(void)
{
    barrier();
    vcpu()->evtchn_upcall_mask = 0;
    barrier(); /* unmask, then look: the other way round an event might be lost in between */
    if (vcpu()->evtchn_upcall_pending)
        HYPERCALL2(xen_version, XENVER_version, 0); /* any hypercall does: Xen looks on its way back */
}

int irqs_disabled(void)
{
    return vcpu()->evtchn_upcall_mask;
}

static u32 take_bits(volatile ulong *word)
{
    ulong bits = 0;
    __asm__ volatile("xchgl %0, %1" : "+r"(bits), "+m"(*word) : : "memory");
    return (u32)bits;
}

static void clear_bit(volatile ulong *word, u32 bit)
{
    __asm__ volatile("lock; btrl %1, %0" : "+m"(*word) : "r"(bit) : "memory", "cc");
}

/* The callback, by way of entry.S; Xen has masked events. */
void upcall(void)
{
    while (vcpu()->evtchn_upcall_pending) {
        vcpu()->evtchn_upcall_pending = 0;
        for (u32 words = take_bits(&vcpu()->evtchn_pending_sel); words; words &= words - 1) {
            u32 word = (u32)__builtin_ctz(words);
            u32 ready = (u32)(shared_info->evtchn_pending[word] & ~shared_info->evtchn_mask[word]);
            for (; ready; ready &= ready - 1) {
                u32 bit = (u32)__builtin_ctz(ready), port = word * WORD_BITS + bit;
                clear_bit(&shared_info->evtchn_pending[word], bit);
                if (port < MAX_PORTS && handlers[port])
                    handlers[port]();
            }
        }
    }
}

static void bound(u32 port, void (*handler)(void))
{
    if (port >= MAX_PORTS)
        panic("too many event channels");
    handlers[port] = handler;
    must(HYPERCALL2(event_channel_op, EVTCHNOP_unmask, &port), "unmask");
}

u32 bind_virq(u32 virq, void (*handler)(void))
{
    struct {
        u32 virq, vcpu, port;
    } bind = { virq, 0, 0 };
    must(HYPERCALL2(event_channel_op, EVTCHNOP_bind_virq, &bind), "bind_virq");
    bound(bind.port, handler);
    return bind.port;
}

void unbind(u32 port)
{
    must(HYPERCALL2(event_channel_op, EVTCHNOP_close, &port), "close");
}

void events_init(void)
{
    struct callback_register event = {
        .type = CALLBACKTYPE_event,
        .cs = KERNEL_CS,
        .address = (ulong)entry_event,
    };
    for (ulong i = 0; i < ARRAY_SIZE(shared_info->evtchn_mask); i++)
        shared_info->evtchn_mask[i] = ~0ul;
    must(HYPERCALL2(callback_op, CALLBACKOP_register, &event), "event callback");
}

static void on_ipi(void)
{
    arrived++;
}

/* An interrupt to ourselves, while masked: it stays pending until the check on unmask finds it. */
void events_report(void)
{
    struct {
        u32 vcpu, port;
    } bind = { 0, 0 };
    must(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &bind), "bind_ipi");
    bound(bind.port, on_ipi);
    must(HYPERCALL2(event_channel_op, EVTCHNOP_send, &bind.port), "send");
    int masked = arrived, pending = vcpu()->evtchn_upcall_pending;
    irq_enable();
    irq_disable();
    printf("events: masked, %d pending and %d arrived; unmasked, %d arrived\n", pending, masked, arrived);
    unbind(bind.port);
}

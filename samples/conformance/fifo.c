/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "FIFO event channels: argument checks, and refused where they are not configured";

struct init_control { u64 control_gfn; u32 offset, vcpu; u8 link_bits, pad[7]; };
struct expand_array { u64 array_gfn; };
struct set_priority { u32 port, priority; };

#define OP(name, argument) HYPERCALL2(event_channel_op, EVTCHNOP_##name, argument)

void conform(void)
{
    u8 *page = alloc_page();
    struct init_control control = { virt_to_mfn(page), 0, 4096, 0, { 0 } };
    struct expand_array array = { virt_to_mfn(page) };
    struct {
        u32 vcpu, port;
    } ipi = { 0, 0 };
    struct set_priority priority = { 1u << 20, 7 };

    /* evtchn_fifo_init_control: the vCPU first, then the place of the control block. */
    EXPECT_REFUSED(OP(init_control, &control), ENOENT);
    control.vcpu = 0;
    control.offset = PAGE_SIZE - 8;
    EXPECT_REFUSED(OP(init_control, &control), EINVAL);
    control.offset = 12;
    EXPECT_REFUSED(OP(init_control, &control), EINVAL);
    EXPECT_REFUSED(OP(init_control, 16), EFAULT);
    EXPECT_REFUSED(OP(expand_array, &array), EOPNOTSUPP); /* without a control block */
    EXPECT_REFUSED(OP(expand_array, 16), EFAULT);
    /* Two levels have no priorities (evtchn_set_priority, evtchn_port_set_priority). */
    EXPECT_REFUSED(OP(set_priority, &priority), EINVAL);
    EXPECT_OK(OP(bind_ipi, &ipi));
    priority.port = ipi.port;
    EXPECT_REFUSED(OP(set_priority, &priority), ENOSYS);
    EXPECT_REFUSED(OP(set_priority, 16), EFAULT);
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        control.offset = 0;
        EXPECT_REFUSED(OP(init_control, &control), EOPNOTSUPP);
    }
    /* The two-level ABI is as it was. */
    EXPECT_OK(OP(send, &ipi.port));
    EXPECT(shared_info->evtchn_pending[0] & (1ul << ipi.port));
    EXPECT_OK(OP(close, &ipi.port));
}

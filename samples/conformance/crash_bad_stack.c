/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "A fault with no stack to tell it on is the end of the domain";

static const u8 undefined[] = { 0x0f, 0x0b };

void conform(void)
{
    EXPECT(user_code() != 0);
    EXPECT_OK(HYPERCALL2(stack_switch, FLAT_KERNEL_SS, 0x2000)); /* nothing is mapped there */
    expect_end("crashed");                                       /* create_bounce_frame: fault while writing */
    run_user(undefined, sizeof(undefined), 0);
    give_up("went on after a fault that cannot be delivered");
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "mmuext_op: flushes, clear and copy, and the operations a domU has no use for";

void conform(void)
{
    u8 *page = alloc_page(), *other = alloc_page();
    ulong vcpus = 1;

    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    EXPECT_OK(mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0));
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_ALL, 0, 0));
    EXPECT_OK(mmuext(MMUEXT_INVLPG_ALL, (ulong)page, 0));
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, (ulong)&vcpus));
    EXPECT_OK(mmuext(MMUEXT_INVLPG_MULTI, (ulong)page, (ulong)&vcpus));
    /* A non-canonical or hypervisor address is quietly nothing to flush (do_mmuext_op). */
    EXPECT_OK(mmuext(MMUEXT_INVLPG_LOCAL, 0, 0));

    memset(page, 0xa5, PAGE_SIZE);
    EXPECT_OK(mmuext(MMUEXT_COPY_PAGE, virt_to_mfn(other), virt_to_mfn(page)));
    EXPECT_EQUAL(memcmp(page, other, PAGE_SIZE), 0);
    EXPECT_OK(mmuext(MMUEXT_CLEAR_PAGE, virt_to_mfn(other), 0));
    EXPECT_EQUAL(other[0] | other[PAGE_SIZE - 1], 0);

    /* Neither may write a page table. */
    ulong table = virt_to_mfn((void *)start_info->pt_base);
    EXPECT_REFUSED(mmuext(MMUEXT_CLEAR_PAGE, table, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_COPY_PAGE, table, virt_to_mfn(page)), EINVAL);
    EXPECT_OK(mmuext(MMUEXT_COPY_PAGE, virt_to_mfn(page), table));
    EXPECT_EQUAL(memcmp(page, (void *)start_info->pt_base, 32), 0);
    EXPECT_REFUSED(mmuext(MMUEXT_CLEAR_PAGE, 0xfffffff, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_COPY_PAGE, virt_to_mfn(page), 0xfffffff), EINVAL);

    EXPECT_REFUSED(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, 16), EINVAL); /* vcpumask_to_pcpumask: -EFAULT is not told */
    EXPECT_REFUSED(mmuext(MMUEXT_MARK_SUPER, virt_to_mfn(page), 0), EOPNOTSUPP);
    EXPECT_REFUSED(mmuext(MMUEXT_UNMARK_SUPER, virt_to_mfn(page), 0), EOPNOTSUPP);
    EXPECT_REFUSED(mmuext(14, 0, 0), ENOSYS);
    EXPECT_REFUSED(mmuext(99, 0, 0), ENOSYS);

    struct mmuext_op ops[3] = {
        { MMUEXT_TLB_FLUSH_LOCAL, 0, 0 },
        { 99, 0, 0 },
        { MMUEXT_CLEAR_PAGE, virt_to_mfn(other), 0 },
    };
    u32 done = 77;
    other[0] = 1;
    EXPECT_REFUSED(HYPERCALL4(mmuext_op, ops, 3, &done, DOMID_SELF), ENOSYS);
    EXPECT_EQUAL(done, 1);
    EXPECT_EQUAL(other[0], 1);
    EXPECT_REFUSED(HYPERCALL4(mmuext_op, 16, 1, 0, DOMID_SELF), EFAULT);
    EXPECT_REFUSED(HYPERCALL4(mmuext_op, ops, 1, 0, 0x1234), ESRCH);
}

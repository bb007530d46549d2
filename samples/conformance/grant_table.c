/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "grants.h"

const char test_title[] = "grant_table_op: sizes and versions, the table's frames, copying, and refusals";

static struct entry *table;

static void set_up(void)
{
    ulong frames[1] = { 0 };
    struct setup_table setup = { DOMID_SELF, 1, 99, frames };
    EXPECT_OK(OP(setup_table, &setup, 1));
    EXPECT_EQUAL(setup.status, GNTST_okay);
    table = alloc_page();
    EXPECT_OK(set_va(table, ((u64)frames[0] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
}

static void copying(void)
{
    u8 *from = alloc_page(), *to = alloc_page();
    from[100] = 0x77;
    table[20] = (struct entry){ GTF_permit_access, DOMID_SELF, 0 };
    struct copy copy = {
        .source = { .u.gmfn = virt_to_mfn(from), .domid = DOMID_SELF, .offset = 96 },
        .dest = { .u.gmfn = virt_to_mfn(to), .domid = DOMID_SELF, .offset = 8 },
        .len = 16, .status = 99,
    };
    EXPECT_OK(OP(copy, &copy, 1));
    EXPECT_EQUAL(copy.status, GNTST_okay);
    EXPECT_EQUAL(to[12], 0x77);
    copy.dest.offset = 4090; /* beyond the page's end */
    EXPECT_OK(OP(copy, &copy, 1));
    EXPECT(copy.status < 0);
    count_refusal();
    copy.dest.offset = 0;
    copy.dest.u.gmfn = virt_to_mfn((void *)start_info->pt_base); /* no page table is written that way */
    EXPECT_OK(OP(copy, &copy, 1));
    EXPECT(copy.status < 0);
    count_refusal();
}

static void mapping(void)
{
    u8 *here = alloc_page();
    struct map map = { (ulong)here, GNTMAP_host_map, 21, 0x1234, 99, 0, 0 };
    EXPECT_OK(OP(map_grant_ref, &map, 1));
    EXPECT_EQUAL(map.status, GNTST_bad_domain);
    count_refusal();
    map.flags = 0; /* neither a host nor a device mapping */
    map.dom = DOMID_SELF;
    EXPECT_OK(OP(map_grant_ref, &map, 1));
    EXPECT(map.status < 0);
    count_refusal();
    struct unmap unmap = { (ulong)here, 0, 12345, 99 };
    EXPECT_OK(OP(unmap_grant_ref, &unmap, 1));
    EXPECT_EQUAL(unmap.status, GNTST_bad_handle);
    count_refusal();
}

void conform(void)
{
    struct query_size size = { DOMID_SELF, 0, 0, 99 };
    struct get_version current = { DOMID_SELF, 0, 0 };
    struct set_version one = { 1 }, three = { 3 };
    EXPECT_OK(OP(query_size, &size, 1));
    EXPECT_EQUAL(size.status, GNTST_okay);
    EXPECT(size.nr_frames >= 1);
    EXPECT(size.max_nr_frames >= size.nr_frames);
    EXPECT_OK(OP(get_version, &current, 1));
    EXPECT_EQUAL(current.version, 1);
    EXPECT_OK(OP(set_version, &one, 1));
    EXPECT_REFUSED(OP(set_version, &three, 1), EINVAL);
    set_up();
    copying();
    mapping();
    size.dom = 0x1234;
    EXPECT_OK(OP(query_size, &size, 1));
    EXPECT_EQUAL(size.status, GNTST_bad_domain);
    count_refusal();
    EXPECT_REFUSED(OP(query_size, 16, 1), EFAULT);
    EXPECT_REFUSED(OP(map_grant_ref, 16, 1), EFAULT);
    EXPECT_REFUSED(HYPERCALL3(grant_table_op, 99, 0, 1), ENOSYS);
    EXPECT_REFUSED(HYPERCALL3(grant_table_op, GNTTABOP_copy, 0, -1), EINVAL);
}

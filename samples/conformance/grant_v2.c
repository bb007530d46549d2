/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "grants.h"

const char test_title[] = "Grant tables of version 2: changing there and back, status frames and bits, sub-page and transitive grants";

#define REF 20
#define REFS_V1 512 /* in one frame */
#define REFS_V2 256

static u16 own_domid;
static volatile union entry_v2 *table;
static volatile u16 *status;
static u8 *granted, *window;
static ulong shared_frames[9];

/* The status in a request; a hypercall that failed as a whole shows as something that no status is. */
#define STATUS_OF(call) ((call) ? 999 : op.status)
/* A refusal: the status of the request, or something that it has not touched. */
#define EXPECT_STATUS(call, wanted) (count_refusal(), EXPECT_EQUAL(call, wanted))

static u32 current_version(void)
{
    struct get_version op = { DOMID_SELF, 0, 99 };
    return OP(get_version, &op, 1) ? 999 : op.version;
}

static long set_version(u32 version)
{
    struct set_version op = { version };
    long rc = OP(set_version, &op, 1);
    if (rc)
        count_refusal();
    EXPECT_EQUAL(op.version, current_version()); /* it tells the one in use, whatever came of the call */
    return rc;
}

static int status_frames(u16 dom, u32 count, u64 *frames)
{
    struct get_status_frames op = { count, dom, 99, frames };
    return STATUS_OF(OP(get_status_frames, &op, 1));
}

static int setup(u32 count)
{
    struct setup_table op = { DOMID_SELF, count, 99, shared_frames };
    return STATUS_OF(OP(setup_table, &op, 1));
}

static void *map_frame(u64 mfn)
{
    u8 *page = alloc_page();
    EXPECT_OK(set_va(page, mfn << PAGE_SHIFT | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    return page;
}

static struct map last;

static int map(u32 flags, u32 ref)
{
    last = (struct map){ (ulong)window, GNTMAP_host_map | flags, ref, own_domid, 99, 0, 0 };
    return OP(map_grant_ref, &last, 1) ? 999 : last.status;
}

static int unmap(u32 handle)
{
    struct unmap op = { (ulong)window, 0, handle, 99 };
    return STATUS_OF(OP(unmap_grant_ref, &op, 1));
}

static int copy(u32 ref, u16 offset, u16 length, u8 *to)
{
    struct copy op = {
        .source = { .u.ref = ref, .domid = own_domid, .offset = offset },
        .dest = { .u.gmfn = virt_to_mfn(to), .domid = DOMID_SELF },
        .len = length, .flags = GNTCOPY_source_gref, .status = 99,
    };
    return STATUS_OF(OP(copy, &op, 1));
}

static int swap(u32 a, u32 b)
{
    struct swap op = { a, b, 99 };
    return STATUS_OF(OP(swap_grant_ref, &op, 1));
}

static void grant(u32 ref, u16 flags)
{
    table[ref].flags = 0;
    table[ref].domid = own_domid;
    table[ref].frame = virt_to_mfn(granted);
    table[ref].flags = flags;
}

static void clear(u32 ref)
{
    for (unsigned i = 0; i < sizeof(*table); i++)
        ((volatile u8 *)&table[ref])[i] = 0;
}

static void what_is_refused(void)
{
    struct get_version other = { 0, 0, 99 };
    u64 frame = 0;
    EXPECT_REFUSED(set_version(0), EINVAL);
    EXPECT_REFUSED(set_version(3), EINVAL);
    EXPECT_REFUSED(OP(set_version, 16, 1), EFAULT);
    EXPECT_REFUSED(OP(get_version, 16, 1), EFAULT);
    EXPECT_REFUSED(OP(get_version, &other, 1), EPERM); /* domain 0's (xsm_grant_query_size) */
    other.dom = 0x1234;
    EXPECT_REFUSED(OP(get_version, &other, 1), ESRCH);
    EXPECT_STATUS(other.version, 99);
    EXPECT_REFUSED(OP(get_status_frames, 16, 1), EFAULT);
    struct get_status_frames op = { 1, DOMID_SELF, 99, &frame };
    EXPECT_REFUSED(OP(get_status_frames, &op, 2), EINVAL);
#ifdef __x86_64__
    EXPECT_REFUSED(OP(get_status_frames, &op, 0), EINVAL);
    op.frame_list = (u64 *)0xffff820000000000ul;
#else
    EXPECT_OK(OP(get_status_frames, &op, 0)); /* compat_grant_table_op has nothing to do */
    op.frame_list = (u64 *)0xff000000;
#endif
    EXPECT_REFUSED(OP(get_status_frames, &op, 1), EFAULT);
    EXPECT_STATUS(status_frames(0, 1, &frame), GNTST_permission_denied);
    EXPECT_STATUS(status_frames(0x1234, 1, &frame), GNTST_bad_domain);
}

static void to_version_2(void)
{
    volatile struct entry *v1 = (volatile struct entry *)table;
    u64 frames[2] = { 0, 0 };
    const u16 console = v1[GNTTAB_RESERVED_CONSOLE].flags, store = v1[GNTTAB_RESERVED_XENSTORE].flags;
    const u16 marks = GTF_reading | GTF_writing;
    EXPECT_EQUAL(current_version(), 1);
    EXPECT_EQUAL(console & GTF_type_mask, GTF_permit_access);
    EXPECT_STATUS(status_frames(DOMID_SELF, 1, frames), GNTST_general_error); /* there are none yet */
    EXPECT_EQUAL(status_frames(DOMID_SELF, 0, frames), GNTST_okay);
    EXPECT_STATUS(map(0, REFS_V1 - 1), GNTST_general_error); /* not granted */
    EXPECT_STATUS(map(0, REFS_V1), GNTST_bad_gntref);
    EXPECT_OK(set_version(1)); /* no change */

    v1[REF] = (struct entry){ GTF_permit_access, own_domid, (u32)virt_to_mfn(granted) };
    EXPECT_EQUAL(map(0, REF), GNTST_okay);
    EXPECT_REFUSED(set_version(2), EBUSY); /* an entry is in use */
    EXPECT_STATUS(v1[REF].flags, GTF_permit_access | marks);
    EXPECT_EQUAL(unmap(last.handle), GNTST_okay);
    v1[5] = (struct entry){ GTF_permit_access | GTF_readonly, 7, 0x12345 };
    EXPECT_OK(set_version(2));

    /* The first eight entries are kept, in their new form; the others are cleared. */
    EXPECT_EQUAL(status_frames(DOMID_SELF, 1, frames), GNTST_okay);
    status = map_frame(frames[0]);
    EXPECT_EQUAL(table[GNTTAB_RESERVED_CONSOLE].flags, console & ~marks);
    EXPECT_EQUAL(status[GNTTAB_RESERVED_CONSOLE], console & marks);
    EXPECT_EQUAL(table[GNTTAB_RESERVED_CONSOLE].frame, start_info->console.domU.mfn);
    EXPECT_EQUAL(table[GNTTAB_RESERVED_XENSTORE].flags, store & ~marks);
    EXPECT_EQUAL(status[GNTTAB_RESERVED_XENSTORE], store & marks);
    EXPECT_EQUAL(table[GNTTAB_RESERVED_XENSTORE].frame, start_info->store_mfn);
    EXPECT_EQUAL(table[5].flags, GTF_permit_access | GTF_readonly);
    EXPECT_EQUAL(table[5].domid, 7);
    EXPECT_EQUAL(table[5].frame, 0x12345);
    EXPECT_EQUAL(table[REF].flags, 0);
    EXPECT_EQUAL(table[REF / 2].flags, 0); /* where version 1 had it */
    EXPECT_STATUS(map(0, REFS_V2 - 1), GNTST_general_error);
    EXPECT_STATUS(map(0, REFS_V2), GNTST_bad_gntref); /* entries are twice as large */
    clear(5);

    EXPECT_STATUS(status_frames(DOMID_SELF, 2, frames), GNTST_general_error);
    /* A 32-bit guest does not hear of it: compat_grant_table_op() has the status before it copies the list. */
    EXPECT_STATUS(status_frames(DOMID_SELF, 1, (u64 *)16), sizeof(ulong) == 8 ? GNTST_bad_virt_addr : GNTST_okay);
    EXPECT_EQUAL(setup(9), GNTST_okay); /* so many entries need two */
    EXPECT_EQUAL(status_frames(DOMID_SELF, 2, frames), GNTST_okay);
    EXPECT_EQUAL(frames[0], (u64)PTE_MFN(*pte_of((void *)status, 1)));
    EXPECT(frames[1] && frames[1] != frames[0]);
    EXPECT_STATUS(status_frames(DOMID_SELF, 3, frames), GNTST_general_error);
}

/* What is in use stands in the status frame, and the entry is the guest's alone (_set_status_v2). */
static void status_bits(void)
{
    grant(REF, GTF_permit_access);
    EXPECT_EQUAL(map(0, REF), GNTST_okay);
    EXPECT_EQUAL(window[7], 0x77);
    EXPECT_EQUAL(table[REF].flags, GTF_permit_access);
    EXPECT_EQUAL(status[REF], GTF_reading | GTF_writing);
    EXPECT_REFUSED(set_version(1), EBUSY);
    EXPECT_STATUS(swap(REF, REF + 1), GNTST_eagain);
    table[REF].flags = 0; /* taken back too late */
    EXPECT_EQUAL(status[REF], GTF_reading | GTF_writing);
    EXPECT_EQUAL(window[7], 0x77);
    EXPECT_EQUAL(unmap(last.handle), GNTST_okay);
    EXPECT_EQUAL(status[REF], 0);
    EXPECT_STATUS(map(0, REF), GNTST_general_error);

    grant(REF, GTF_permit_access | GTF_readonly);
    EXPECT_STATUS(map(0, REF), GNTST_general_error);
    EXPECT_STATUS(status[REF], 0);
    EXPECT_EQUAL(map(GNTMAP_readonly, REF), GNTST_okay);
    EXPECT_EQUAL(status[REF], GTF_reading);
    EXPECT_EQUAL(unmap(last.handle), GNTST_okay);
    EXPECT_EQUAL(status[REF], 0);

    /* Marks in the entry itself mean nothing. */
    grant(REF, GTF_permit_access | GTF_reading | GTF_writing);
    EXPECT_EQUAL(map(0, REF), GNTST_okay);
    EXPECT_EQUAL(unmap(last.handle), GNTST_okay);
    EXPECT_EQUAL(table[REF].flags, GTF_permit_access | GTF_reading | GTF_writing);

    grant(REF, GTF_permit_access);
    table[REF].domid = 0;
    EXPECT_STATUS(map(0, REF), GNTST_general_error);
    EXPECT_STATUS(copy(REF, 0, 16, window), GNTST_general_error);
    grant(REF, GTF_accept_transfer);
    EXPECT_STATUS(map(0, REF), GNTST_general_error);
    grant(REF, GTF_permit_access);
    table[REF].frame = 0x00ffffffffffffull; /* beyond all memory */
    EXPECT_STATUS(map(0, REF), -9 /* GNTST_bad_page */);
    EXPECT_STATUS(status[REF], 0);
}

static void kinds(void)
{
    u8 *to = alloc_page();
    grant(REF, GTF_permit_access | GTF_sub_page);
    table[REF].page_off = 64;
    table[REF].length = 32;
    EXPECT_STATUS(map(0, REF), GNTST_general_error); /* to be copied only */
    EXPECT_STATUS(status[REF], 0);
    EXPECT_EQUAL(copy(REF, 64, 32, to), GNTST_okay);
    EXPECT(!memcmp(to, granted + 64, 32));
    EXPECT_EQUAL(status[REF], 0);
    EXPECT_STATUS(copy(REF, 63, 16, to), GNTST_general_error);
    EXPECT_STATUS(copy(REF, 80, 17, to), GNTST_general_error);
    EXPECT_STATUS(copy(REF, 96, 16, to), GNTST_general_error);
    EXPECT_STATUS(copy(REF, 4090, 16, to), GNTST_bad_copy_arg);

    clear(REF);
    table[REF].domid_to = own_domid;
    table[REF].trans_domid = own_domid;
    table[REF].gref = REF + 1;
    table[REF].trans_flags = GTF_transitive;
    grant(REF + 1, GTF_permit_access);
    EXPECT_STATUS(copy(REF, 0, 16, to), GNTST_general_error); /* it may not lead to oneself */
    EXPECT_STATUS(map(0, REF), GNTST_general_error);
    table[REF].trans_domid = 0x1234; /* nor to nobody */
    EXPECT_STATUS(copy(REF, 0, 16, to), GNTST_general_error);
    EXPECT_STATUS(status[REF], 0);
    EXPECT_EQUAL(copy(REF + 1, 7, 1, to), GNTST_okay);
    EXPECT_EQUAL(to[0], 0x77);

    /* Two entries change places, and their status with them. */
    status[REF] = 0x8000;
    EXPECT_EQUAL(swap(REF, REF + 1), GNTST_okay);
    EXPECT_EQUAL(table[REF].flags, GTF_permit_access);
    EXPECT_EQUAL(table[REF + 1].flags, GTF_transitive);
    EXPECT_EQUAL(table[REF + 1].gref, REF + 1);
    EXPECT_EQUAL(status[REF], 0);
    EXPECT_EQUAL(status[REF + 1], 0x8000);
    EXPECT_EQUAL(swap(REF, REF), GNTST_okay);
    EXPECT_STATUS(swap(REF, 9 * REFS_V2), GNTST_bad_gntref);
    EXPECT_STATUS(swap(9 * REFS_V2, REF), GNTST_bad_gntref);
}

static void back_to_version_1(void)
{
    volatile struct entry *v1 = (volatile struct entry *)table;
    u64 frame = 0;
    const u16 console = table[GNTTAB_RESERVED_CONSOLE].flags | status[GNTTAB_RESERVED_CONSOLE];
    /* What version 1 has no form for may not stand in the first eight entries. */
    grant(5, GTF_transitive);
    EXPECT_REFUSED(set_version(1), ERANGE);
    grant(5, GTF_permit_access);
    table[5].frame = 1ull << 32;
    EXPECT_REFUSED(set_version(1), ERANGE);
    table[5].frame = 0x123;
    table[6].frame = 0x456;
    table[6].flags = GTF_accept_transfer;
    EXPECT_REFUSED(set_version(1), EBUSY); /* the status frame is mapped (gnttab_unpopulate_status_frames) */
    EXPECT_STATUS(current_version(), 2);
    EXPECT_STATUS(table[5].frame, 0x123);
    EXPECT_OK(set_va((void *)status, 0, UVMF_INVLPG));
    EXPECT_OK(set_version(1));
    EXPECT_EQUAL(v1[GNTTAB_RESERVED_CONSOLE].flags, console);
    EXPECT_EQUAL(v1[GNTTAB_RESERVED_CONSOLE].frame, start_info->console.domU.mfn);
    EXPECT_EQUAL(v1[5].flags, GTF_permit_access);
    EXPECT_EQUAL(v1[5].frame, 0x123);
    EXPECT_EQUAL(v1[6].flags, 0);
    EXPECT_EQUAL(v1[6].frame, 0);
    EXPECT_EQUAL(v1[2 * REF].flags, 0);
    EXPECT_STATUS(status_frames(DOMID_SELF, 1, &frame), GNTST_general_error);
    v1[REF] = (struct entry){ GTF_permit_access, own_domid, (u32)virt_to_mfn(granted) };
    EXPECT_EQUAL(map(0, REF), GNTST_okay);
    EXPECT_EQUAL(v1[REF].flags, GTF_permit_access | GTF_reading | GTF_writing);
    EXPECT_EQUAL(unmap(last.handle), GNTST_okay);
}

void conform(void)
{
    own_domid = learn_domid();
    granted = alloc_page();
    for (unsigned i = 0; i < PAGE_SIZE; i++)
        granted[i] = (u8)(0x70 + i);
    window = alloc_page();
    EXPECT_OK(set_va(window, 0, UVMF_INVLPG));
    EXPECT_EQUAL(setup(1), GNTST_okay);
    table = map_frame(shared_frames[0]);
    what_is_refused();
    to_version_2();
    status_bits();
    kinds();
    back_to_version_1();
}

/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * grant_table_op as the conformance guests use it: xen/include/public/grant_table.h.
 */
#ifndef SAMPLES_GRANTS_H
#define SAMPLES_GRANTS_H

#include "conform.h"

struct query_size { u16 dom; u32 nr_frames, max_nr_frames; short status; };
struct setup_table { u16 dom; u32 nr_frames; short status; ulong *frame_list; };
struct set_version { u32 version; };
struct get_version { u16 dom, pad; u32 version; };
struct get_status_frames { u32 nr_frames; u16 dom; short status; u64 *frame_list; };
struct swap { u32 ref_a, ref_b; short status; };
struct map { u64 host_addr; u32 flags, ref; u16 dom; short status; u32 handle; u64 dev_bus_addr; };
struct unmap { u64 host_addr, dev_bus_addr; u32 handle; short status; };
struct copy { struct { union { u32 ref; ulong gmfn; } u; u16 domid, offset; } source, dest; u16 len, flags; short status; };

struct entry { u16 flags, domid; u32 frame; };
union entry_v2 {
    struct { u16 flags, domid; u32 pad; u64 frame; };
    struct { u16 sub_flags, sub_domid, page_off, length; u64 sub_frame; };
    struct { u16 trans_flags, domid_to, trans_domid, trans_pad; u32 gref, trans_pad2; };
};

#define OP(name, argument, count) HYPERCALL3(grant_table_op, GNTTABOP_##name, argument, count)
#define GNTST_okay 0
#define GNTST_general_error (-1)
#define GNTST_bad_domain (-2)
#define GNTST_bad_gntref (-3)
#define GNTST_bad_handle (-4)
#define GNTST_bad_virt_addr (-5)
#define GNTST_permission_denied (-8)
#define GNTST_bad_page (-9)
#define GNTST_bad_copy_arg (-10)
#define GNTST_eagain (-12)
#define GTF_type_mask 3
#define GTF_permit_access 1
#define GTF_accept_transfer 2
#define GTF_transitive 3
#define GTF_readonly 4
#define GTF_reading 8
#define GTF_writing 16
#define GTF_sub_page 256
#define GNTMAP_host_map 2
#define GNTMAP_readonly 4
#define GNTMAP_contains_pte 16
#define GNTCOPY_source_gref 1
#define GNTCOPY_dest_gref 2
#define GNTTAB_RESERVED_CONSOLE 0
#define GNTTAB_RESERVED_XENSTORE 1

/* A channel to oneself knows one's own number, which nothing else tells. */
static inline u16 learn_domid(void)
{
    struct { u16 dom, remote_dom; u32 port; } unbound = { DOMID_SELF, DOMID_SELF, 0 };
    struct { u16 remote_dom; u32 remote_port, local_port; } bind = { DOMID_SELF, 0, 0 };
    struct { u16 dom; u32 port, status, vcpu; u16 remote; u32 remote_port; } status = { .dom = DOMID_SELF };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound));
    bind.remote_port = unbound.port;
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_interdomain, &bind));
    status.port = bind.local_port;
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_status, &status));
    return status.remote;
}

#endif

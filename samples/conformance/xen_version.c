/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "xen_version: what Xen says of itself";

static char text[1024];

void conform(void)
{
    EXPECT_RC(HYPERCALL2(xen_version, XENVER_version, 0), 4 << 16 | 17);
    EXPECT_OK(HYPERCALL2(xen_version, XENVER_extraversion, text));
    EXPECT(strlen(text) < 16);
    EXPECT_OK(HYPERCALL2(xen_version, XENVER_capabilities, text));
    EXPECT(!strncmp(text, "xen-3.0-x86_64 xen-3.0-x86_32p", 30));
    EXPECT_OK(HYPERCALL2(xen_version, XENVER_changeset, text));
    EXPECT_OK(HYPERCALL2(xen_version, XENVER_compile_info, text));
    EXPECT_RC(HYPERCALL2(xen_version, XENVER_pagesize, 0), 4096);
    ulong virt_start = 0;
    EXPECT_OK(HYPERCALL2(xen_version, XENVER_platform_parameters, &virt_start));
#ifdef __x86_64__
    EXPECT_EQUAL(virt_start, 0xffff800000000000ul);
#else
    EXPECT(virt_start >= 0xf5800000ul);
#endif
    struct xen_feature_info features = { 0, 0 };
    EXPECT_OK(HYPERCALL2(xen_version, XENVER_get_features, &features));
    EXPECT(features.submap & 1 << 5); /* XENFEAT_mmu_pt_update_preserve_ad */
    features.submap_idx = 1;
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_get_features, &features), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_get_features, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_extraversion, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_capabilities, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(xen_version, 99, 0), ENOSYS);
}

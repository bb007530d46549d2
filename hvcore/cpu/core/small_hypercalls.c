/* Hypercalls of a few lines: hvcore/pv/misc_hypercalls.py, hvcore/common/kernel.py and vcpu_op.py. */
#include "lane.h"

enum { XENVER_version = 0, XEN_VERSION = 4 << 16 | 17 };
enum { SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL, SEGBASE_GS_USER_SEL };
enum { VCPUOP_is_up = 3 };
enum { CR0_TS = 8, ENOENT = 2 };

bool hv_xen_version(struct hv_call *c) {
    if ((uint32_t)c->args[0] != XENVER_version)
        return NOT_MINE;
    c->result = XEN_VERSION;
    return MINE;
}

/* A vCPU that the domain does not have (Linux asks for all that it could have, 8,191 times in a boot), or
 * VCPUOP_is_up of the one that asks, which runs. */
bool hv_vcpu_op(struct hv_call *c) {
    uint32_t vcpuid = (uint32_t)c->args[1];
    if (vcpuid < c->d->nr_vcpus && ((uint32_t)c->args[0] != VCPUOP_is_up || vcpuid != c->v->vcpu_id))
        return NOT_MINE;
    c->result = vcpuid < c->d->nr_vcpus ? 1 : -(uint64_t)ENOENT;
    return MINE;
}

bool hv_stack_switch(struct hv_call *c) {
    uint64_t selector = c->args[0], kernel_cpl = c->is_32bit ? 1 : 3;
    if ((selector & 3) < kernel_cpl) /* fixup_guest_selector() */
        selector = (selector & ~UINT64_C(3)) | kernel_cpl;
    hv_set64(c, &c->v->kernel_ss, selector & 0xffff);
    hv_set64(c, &c->v->kernel_sp, c->args[1]);
    return MINE;
}

/* _load_user_gs(): the process has the segment's base, the kernel keeps its own. */
static bool load_user_gs(struct hv_call *c, uint32_t selector) {
    uint64_t kernel_base = hv_segment(c, GS)->base;
    if (!hv_load_data(c, GS, selector > 3 ? selector | 3 : selector))
        return NOT_MINE;
    hv_set64(c, &c->v->gs_base_user, hv_segment(c, GS)->base);
    hv_set_base(c, GS, kernel_base);
    return MINE;
}

bool hv_set_segment_base(struct hv_call *c) {
    uint64_t base = c->args[1];
    if (!c->is_32bit && (uint32_t)c->args[0] == SEGBASE_GS_USER_SEL)
        return load_user_gs(c, (uint16_t)base);
    if (c->is_32bit || !hv_is_canonical(base))
        return NOT_MINE;
    switch ((uint32_t)c->args[0]) {
    case SEGBASE_FS:
        hv_set_base(c, FS, base);
        break;
    case SEGBASE_GS_USER:
        hv_set64(c, &c->v->gs_base_user, base);
        break;
    case SEGBASE_GS_KERNEL:
        hv_set_base(c, GS, base);
        break;
    default:
        return NOT_MINE;
    }
    return MINE;
}

bool hv_fpu_taskswitch(struct hv_call *c) {
    uint32_t *hflags = hv_hflags(c);
    bool set = (uint32_t)c->args[0];
    hv_set64(c, &c->v->ts_set, set);
    hv_set64(c, &c->regs[CR0], set ? c->regs[CR0] | CR0_TS : c->regs[CR0] & ~(uint64_t)CR0_TS);
    hv_set32(c, hflags, set ? *hflags | HF_TS : *hflags & ~(uint32_t)HF_TS);
    return MINE;
}

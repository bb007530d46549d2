/* Port I/O of a kernel that may do it: behind the ports of a domU there is nothing (hvcore/pv/io_port.py).
 *
 * In the ring that is open a read gives ones, a write is lost, each is counted and takes its time. Otherwise,
 * and for the ports that Xen keeps (0x70 and 0xcf8, and what is so near that a wider access reaches it), the
 * access is #GP, and the hypervisor looks at it in full.
 */
#include "core.h"

enum { HF_CPL = 3, TRAP_gp_fault = 13 };
enum { HFLAGS_OFFSET = 176 }; /* state_window.HFLAGS */

typedef void raise_function(void *env, int vector, int error_code);

static bool is_open(const struct hv_engine *e, uint32_t port) {
    uint32_t hflags = *(const uint32_t *)(e->env + HFLAGS_OFFSET);
    return (hflags & HF_CPL) == e->port_ring && port - 0x6d > 3 && port != 0xcf8;
}

static void take_time(struct hv_engine *e) {
    e->left -= e->port_cost;
    e->spent += e->port_cost;
}

static void general_protection(struct hv_engine *e) { /* does not come back */
    ((raise_function *)e->raise_exception_err)((void *)e->env, TRAP_gp_fault, 0);
}

HV_EXPORT uint32_t hv_in(void *uc, uint32_t port, int size, struct hv_engine *e) {
    (void)uc, (void)size;
    if (!is_open(e, port))
        general_protection(e);
    e->port_reads++;
    take_time(e);
    return UINT32_MAX;
}

HV_EXPORT void hv_out(void *uc, uint32_t port, int size, uint32_t value, struct hv_engine *e) {
    (void)uc, (void)size, (void)value;
    if (!is_open(e, port))
        general_protection(e);
    e->port_writes++;
    take_time(e);
}

/* Port I/O of a kernel that may do it: behind the ports of a domU there is nothing (hvcore/pv/io_port.py).
 *
 * In the ring that is open a read gives ones, a write is lost, each is counted and takes its time. Otherwise,
 * and for the ports that Xen keeps (0x70 and 0xcf8, and what is so near that a wider access reaches it), the
 * access is #GP, and the hypervisor looks at it in full; save that what is written there is kept.
 */
#include "core.h"
#include "x86.h"

enum { RTC_PORT_0 = 0x70, PCI_CONFIG_ADDRESS = 0xcf8 };

typedef void raise_function(void *env, int vector, int error_code);

static bool is_open_ring(const struct hv_engine *e) {
    return (*(const uint32_t *)(e->env + HFLAGS_OFFSET) & HF_CPL) == e->port_ring;
}

static bool is_open(const struct hv_engine *e, uint32_t port) {
    return is_open_ring(e) && port - (RTC_PORT_0 - 3) > 3 && port != PCI_CONFIG_ADDRESS;
}

static void general_protection(struct hv_engine *e) { /* does not come back */
    ((raise_function *)e->raise_exception_err)((void *)e->env, TRAP_gp_fault, 0);
}

HV_EXPORT uint32_t hv_in(void *uc, uint32_t port, int size, struct hv_engine *e) {
    (void)uc, (void)size;
    if (!is_open(e, port))
        general_protection(e);
    e->port_reads++;
    hv_take_time(e, e->port_cost);
    return UINT32_MAX;
}

/* Where guest_io_write() keeps what is written to a port of Xen's; NULL: what is so written is Python's. */
static uint64_t *kept(const struct hv_engine *e, uint32_t port, int size) {
    uint64_t *words = (uint64_t *)e->port_keeps; /* cmos_idx, pci_cf8 */
    if (!words || !is_open_ring(e))
        return NULL;
    if (port == RTC_PORT_0 && size == 1)
        return &words[0];
    return port == PCI_CONFIG_ADDRESS && size == 4 ? &words[1] : NULL;
}

HV_EXPORT void hv_out(void *uc, uint32_t port, int size, uint32_t value, struct hv_engine *e) {
    (void)uc;
    uint64_t *at = kept(e, port, size);
    if (at)
        *at = size == 1 ? value & 0xff : value;
    else if (!is_open(e, port))
        general_protection(e);
    e->port_writes++;
    hv_take_time(e, e->port_cost);
}

/*
 * libxenguest building a PV domain with no Xen below it: the few calls by which it reaches the hypervisor are
 * answered here. Prints what it found out as JSON, and leaves ram, context and shared_info in the folder; where
 * it refuses, it prints why on stderr, and the exit code is 1.
 *
 *     xenguest FOLDER MEMORY_MIB FIRST_MFN SHARED_INFO_MFN KERNEL COMMAND_LINE [RAMDISK]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>

#define XC_WANT_COMPAT_MAP_FOREIGN_API
#include <xenctrl.h>
#include <xencall.h>
#include <xenguest.h>

#define DOMID 5
#define PAGE 4096ul

static const char *folder;
static int ram;
static struct mmuext_op pinned;
static uint64_t first_mfn, nr_pages, shared_info_mfn;

struct ranges { /* privcmd_mmap_entry_t */
    uint64_t va, mfn, npages;
};

static int file(const char *name, uint64_t size)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size)) {
        perror(path);
        exit(2);
    }
    return fd;
}

int xc_version(xc_interface *xch, int cmd, void *arg)
{
    (void)xch;
    if (cmd == XENVER_capabilities)
        strcpy(arg, "xen-3.0-x86_64 xen-3.0-x86_32p ");
    return 4 << 16 | 17;
}

/* Memory is handed out in order: pseudo-physical page N is machine page FIRST_MFN + N. */
int xc_domain_populate_physmap(xc_interface *xch, uint32_t domid, unsigned long nr_extents, unsigned int order,
                               unsigned int flags, xen_pfn_t *extents)
{
    (void)xch, (void)domid, (void)order, (void)flags;
    for (unsigned long i = 0; i < nr_extents; i++)
        extents[i] += first_mfn;
    return (int)nr_extents;
}

int xc_domain_populate_physmap_exact(xc_interface *xch, uint32_t domid, unsigned long nr_extents, unsigned int order,
                                     unsigned int flags, xen_pfn_t *extents)
{
    xc_domain_populate_physmap(xch, domid, nr_extents, order, flags, extents);
    return 0;
}

int xc_domain_claim_pages(xc_interface *xch, uint32_t domid, unsigned long pages)
{
    (void)xch, (void)domid, (void)pages;
    return 0;
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t dom, int size, int prot, unsigned long mfn)
{
    static int shared_info = -1;
    (void)xch, (void)dom;
    if (mfn == shared_info_mfn) {
        if (shared_info < 0)
            shared_info = file("shared_info", PAGE);
        return mmap(NULL, (size_t)size, prot, MAP_SHARED, shared_info, 0);
    }
    if (mfn < first_mfn || mfn >= first_mfn + nr_pages)
        return NULL;
    return mmap(NULL, (size_t)size, prot, MAP_SHARED, ram, (off_t)((mfn - first_mfn) * PAGE));
}

void *xc_map_foreign_ranges(xc_interface *xch, uint32_t dom, size_t size, int prot, size_t chunk,
                            struct ranges *entries, int nr_entries)
{
    (void)chunk, (void)nr_entries;
    return xc_map_foreign_range(xch, dom, (int)size, prot, entries[0].mfn);
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    (void)xch, (void)first, (void)max;
    memset(info, 0, sizeof(*info));
    info->domid = DOMID;
    info->shared_info_frame = shared_info_mfn;
    return 1;
}

int xc_mmuext_op(xc_interface *xch, struct mmuext_op *op, unsigned int nr_ops, uint32_t dom)
{
    (void)xch, (void)nr_ops, (void)dom;
    pinned = *op;
    return 0;
}

int xc_vcpu_setcontext(xc_interface *xch, uint32_t domid, uint32_t vcpu, vcpu_guest_context_any_t *context)
{
    (void)xch, (void)domid, (void)vcpu;
    int fd = file("context", 0);
    return write(fd, context, sizeof(*context)) == sizeof(*context) ? 0 : -1;
}

/* domctls: the guest's width, and its hypercall page, which Xen refuses to put where the guest has none */
int xc__hypercall_bounce_pre(xc_interface *xch, xc_hypercall_buffer_t *bounce)
{
    (void)xch;
    bounce->hbuf = bounce->ubuf;
    return 0;
}

void xc__hypercall_bounce_post(xc_interface *xch, xc_hypercall_buffer_t *bounce)
{
    (void)xch, (void)bounce;
}

int xencall1(xencall_handle *xcall, unsigned int op, uint64_t arg)
{
    const struct xen_domctl *domctl = (const void *)(uintptr_t)arg;
    (void)xcall, (void)op;
    if (domctl->cmd != XEN_DOMCTL_hypercall_init)
        return 0;
    uint64_t mfn = domctl->u.hypercall_init.gmfn;
    errno = EPERM;
    return mfn < first_mfn || mfn >= first_mfn + nr_pages ? -1 : 0;
}

static void step(const char *name, int failed)
{
    if (!failed)
        return;
    fprintf(stderr, "refused by %s\n", name);
    exit(1);
}

static void report(struct xc_dom_image *dom)
{
    printf("{\"guest_type\": \"%s\", \"guest_os\": \"%s\"", dom->guest_type, xc_dom_guest_os(dom));
    printf(", \"virt_base\": %lu, \"virt_entry\": %lu", xc_dom_virt_base(dom), xc_dom_virt_entry(dom));
    printf(", \"virt_hypercall\": %lu", xc_dom_virt_hypercall(dom));
    printf(", \"virt_kstart\": %lu, \"virt_kend\": %lu", dom->kernel_seg.vstart, dom->kernel_seg.vend);
    printf(", \"pinned\": [%u, %lu]}\n", pinned.cmd, (unsigned long)pinned.arg1.mfn);
}

int main(int argc, char **argv)
{
    if (argc < 7)
        return 2;
    folder = argv[1];
    unsigned mib = (unsigned)atoi(argv[2]);
    nr_pages = (uint64_t)mib << 8;
    first_mfn = strtoull(argv[3], NULL, 0);
    shared_info_mfn = strtoull(argv[4], NULL, 0);
    ram = file("ram", nr_pages * PAGE);

    xentoollog_logger *log = (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
    xc_interface *xch = xc_interface_open(log, log, XC_OPENFLAG_DUMMY);
    struct xc_dom_image *dom = xc_dom_allocate(xch, argv[6], NULL);
    step("xc_dom_kernel_file", xc_dom_kernel_file(dom, argv[5]));
    if (argc > 7)
        step("xc_dom_module_file", xc_dom_module_file(dom, argv[7], NULL));
    dom->flags = 0; /* libxl's choice: of those of a guest's start_info it has none for a domU */
    dom->xenstore_evtchn = 1;
    dom->console_evtchn = 2;
    step("xc_dom_boot_xen_init", xc_dom_boot_xen_init(dom, xch, DOMID));
    step("xc_dom_parse_image", xc_dom_parse_image(dom));
    step("xc_dom_mem_init", xc_dom_mem_init(dom, mib));
    step("xc_dom_boot_mem_init", xc_dom_boot_mem_init(dom));
    step("xc_dom_build_image", xc_dom_build_image(dom));
    step("xc_dom_boot_image", xc_dom_boot_image(dom));
    report(dom);
    return 0;
}

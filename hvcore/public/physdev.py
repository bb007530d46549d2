"""xen/include/public/physdev.h: operations and argument layouts, by word size where they differ."""

from __future__ import annotations

import struct

PHYSDEVOP_IRQ_UNMASK_NOTIFY = 4
PHYSDEVOP_irq_status_query = 5
PHYSDEVOP_set_iopl = 6
PHYSDEVOP_set_iobitmap = 7
PHYSDEVOP_apic_read = 8
PHYSDEVOP_apic_write = 9
PHYSDEVOP_alloc_irq_vector = 10
PHYSDEVOP_free_irq_vector = 11
PHYSDEVOP_eoi = 12
PHYSDEVOP_map_pirq = 13
PHYSDEVOP_unmap_pirq = 14
PHYSDEVOP_manage_pci_add = 15
PHYSDEVOP_manage_pci_remove = 16
PHYSDEVOP_pirq_eoi_gmfn_v1 = 17
PHYSDEVOP_restore_msi = 19
PHYSDEVOP_manage_pci_add_ext = 20
PHYSDEVOP_setup_gsi = 21
PHYSDEVOP_get_free_pirq = 23
PHYSDEVOP_pci_mmcfg_reserved = 24
PHYSDEVOP_pci_device_add = 25
PHYSDEVOP_pci_device_remove = 26
PHYSDEVOP_restore_msi_ext = 27
PHYSDEVOP_pirq_eoi_gmfn_v2 = 28
PHYSDEVOP_dbgp_op = 29
PHYSDEVOP_prepare_msix = 30
PHYSDEVOP_release_msix = 31

XENIRQSTAT_needs_eoi = 1
XENIRQSTAT_shared = 2

MAP_PIRQ_TYPE_MSI = 0
MAP_PIRQ_TYPE_GSI = 1
MAP_PIRQ_TYPE_UNKNOWN = 2
MAP_PIRQ_TYPE_MSI_SEG = 3
MAP_PIRQ_TYPE_MULTI_MSI = 4

XEN_PCI_DEV_PXM = 4
IOBMP_BYTES = 8192

physdev_eoi = struct.Struct("<I")  # uint32_t irq
physdev_pirq_eoi_gmfn = {4: struct.Struct("<I"), 8: struct.Struct("<Q")}  # xen_pfn_t gmfn
physdev_irq_status_query = struct.Struct("<II")  # uint32_t irq, flags
physdev_set_iopl = struct.Struct("<I")  # uint32_t iopl
physdev_set_iobitmap = {4: struct.Struct("<II"), 8: struct.Struct("<QI4x")}  # bitmap; nr_ports
physdev_apic = {4: struct.Struct("<III"), 8: struct.Struct("<QII")}  # apic_physbase; reg; value
physdev_irq = struct.Struct("<II")  # uint32_t irq, vector
# domid; type; index; pirq; bus; devfn; entry_nr; table_base
physdev_map_pirq = {4: struct.Struct("<H2xiiiiiiQ"), 8: struct.Struct("<H2xiiiiii4xQ")}
physdev_unmap_pirq = struct.Struct("<H2xi")  # domid; pirq
physdev_manage_pci = struct.Struct("<BB")  # bus; devfn
physdev_restore_msi = struct.Struct("<BB")  # bus; devfn
physdev_manage_pci_ext = struct.Struct("<BB2xIIBB2x")  # bus; devfn; is_extfn; is_virtfn; physfn
physdev_setup_gsi = struct.Struct("<iBB2x")  # gsi; triggering; polarity
physdev_get_free_pirq = struct.Struct("<iI")  # type; pirq
physdev_pci_device_add = struct.Struct("<HBBIBB2x")  # seg; bus; devfn; flags; physfn; optarr follows
physdev_pci_device = struct.Struct("<HBB")  # seg; bus; devfn
physdev_op = {4: struct.Struct("<I12x"), 8: struct.Struct("<I20x")}  # uint32_t cmd; union u
PHYSDEV_OP_U = {4: 4, 8: 8}  # offset of u in physdev_op

"""A Xen PV hypervisor hosted on the Unicorn engine: what xen/ is to Xen."""

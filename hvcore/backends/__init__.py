"""The backends, which under Xen run in domain 0: console, xenstore, disks, network, framebuffer."""

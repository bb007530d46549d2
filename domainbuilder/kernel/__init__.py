"""A kernel file becomes an ELF image with notes: what it asks of Xen, a verdict, findings, repairs."""

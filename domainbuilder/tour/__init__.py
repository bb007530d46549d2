"""A kernel's boot told step by step: what it asked, what Xen checked, and where to read on."""

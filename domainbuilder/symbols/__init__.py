"""Names, source lines and call frames for a kernel's addresses: its own, or those of another file."""

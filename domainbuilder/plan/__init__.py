"""An ELF image becomes a layout: segments, page tables, start_info, the first vCPU's context."""

"""What a paravirtual x86 guest gets: page tables, traps, descriptors, emulated instructions."""

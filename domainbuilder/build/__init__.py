"""A layout becomes a domain in memory, and a dump-core file; and back."""

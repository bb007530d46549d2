"""What Xen does alike on every architecture: events, scheduling, memory, time."""

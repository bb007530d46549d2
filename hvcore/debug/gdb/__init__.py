"""GDB's remote protocol over the debugger: packets, registers as gdb numbers them, a session's commands."""

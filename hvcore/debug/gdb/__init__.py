"""GDB's remote protocol over the debugger: packets, registers as gdb numbers them, and the commands of a session."""

"""What xl reads: the syntax of disks, and configuration files."""

"""What xl reads: the syntax of disks."""

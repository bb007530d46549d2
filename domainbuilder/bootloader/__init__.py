"""What a boot loader finds on a disk: partitions, file systems, configurations, kernels."""

"""What things cost on this machine: `python -m benchmarks` (`make bench`). Nothing here passes or fails."""

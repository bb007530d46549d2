"""What domain 0 would run for this domain."""

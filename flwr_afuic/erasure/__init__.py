"""Package erasure."""

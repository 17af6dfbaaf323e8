"""Package metrics."""

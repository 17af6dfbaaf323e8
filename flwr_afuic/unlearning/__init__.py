"""Package unlearning."""

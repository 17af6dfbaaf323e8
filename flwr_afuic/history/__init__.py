"""The update history: compressed records, their store, and unlearning from the store alone."""

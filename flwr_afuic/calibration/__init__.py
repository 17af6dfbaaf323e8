"""Invariance calibration: the relearning lock, consistency on proxies, transformations."""

"""Erasure requests: the server's book and the hospital's inbox."""

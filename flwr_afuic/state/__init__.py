"""The server's state directory: database, weights, keys, certificates, backups."""

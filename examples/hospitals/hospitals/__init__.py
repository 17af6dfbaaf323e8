"""The federation's app: what every hospital and the coordinator run. Yours goes here."""

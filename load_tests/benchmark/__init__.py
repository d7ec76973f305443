"""Measures a running system against the baseline on the same machine; `make bench` runs it."""

"""Cluster and continuous-integration tooling: everything behind `make up` and `make test`.

Runs on the host with nothing but Python's standard library, so that it works before anything is installed.
"""

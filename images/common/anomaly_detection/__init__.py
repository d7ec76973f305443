"""What the services share.

Contracts, series, model format, settings, errors, logs and the clients of their dependencies.
"""

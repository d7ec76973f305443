"""What Schemathesis runs with: its configuration and its hooks."""

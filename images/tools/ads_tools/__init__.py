"""Jobs around the chart: credentials, the object store's buckets and users, and the test of an installation."""

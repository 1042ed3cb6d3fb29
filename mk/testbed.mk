# The cluster of containers that integration tests, demo and benchmarks use.

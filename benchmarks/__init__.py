"""Speed, memory and accuracy of fastctc, measured beside its peers: ``python -m benchmarks``."""

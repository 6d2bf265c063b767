"""Compare speed and memory with what people use today: python -m benchmarks."""

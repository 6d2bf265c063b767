"""Speed and memory beside what people use today: python -m benchmarks."""

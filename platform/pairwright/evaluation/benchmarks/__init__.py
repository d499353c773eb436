"""Public benchmarks by file: their layouts, and their own rules."""

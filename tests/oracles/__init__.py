"""Float64 references, written from the definitions and independently of every fast path. NumPy only."""

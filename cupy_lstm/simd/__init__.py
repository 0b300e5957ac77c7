"""What the engine simd is made of: vectors, kernels, packed weights, rows, threads."""

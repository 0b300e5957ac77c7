"""The CUDA runtime, driver, cuBLAS and NVRTC that CuPy finds on a machine without a GPU."""

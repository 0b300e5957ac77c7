"""What `profiling/model.py` and `profiling/bench_gpu.py` share."""

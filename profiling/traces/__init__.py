"""Ranges and kernels of a run: recording, reading, and what is made of them."""

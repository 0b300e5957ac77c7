"""Products of float32 in the matrix unit of a CPU (Intel's AMX), which multiplies bfloat16 only.

A float32 is the sum of three bfloat16, so its products are sums of theirs: about as accurate as
those of float32, at up to three times the rate of its vectors.
"""

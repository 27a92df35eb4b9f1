"""`make bench-cuda`: the path through a CUDA device, checked and timed in one call."""

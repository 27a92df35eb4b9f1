"""Training of character language models with truncated back-propagation through time.

Nothing outside this package needs torch to serve or to convert a safetensors checkpoint.
"""

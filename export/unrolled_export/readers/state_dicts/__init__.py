"""Networks in the tensors of PyTorch state dicts, recognised by structure."""

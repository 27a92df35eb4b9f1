"""Files of `torch.save`, and the model in what they hold."""

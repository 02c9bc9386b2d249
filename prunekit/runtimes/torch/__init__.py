"""PyTorch itself: live modules and torch.export packages, on CPU and GPU."""

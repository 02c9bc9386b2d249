"""NVIDIA GPUs: which there are, their clocks, and CUDA buffers."""

"""TensorRT: engines built from files, run and profiled."""

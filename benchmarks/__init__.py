"""What prunekit does, measured: speed, memory, accuracy."""

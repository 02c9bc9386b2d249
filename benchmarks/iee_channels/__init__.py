"""IEE for channels against its alternatives, at the same measured latency."""

"""Files timed against each other, interleaved on a target."""

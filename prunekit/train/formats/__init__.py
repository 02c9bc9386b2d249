"""Data sets on disk whose targets are no folders' names: boxes, masks and columns of a table."""

"""What every room uses: errors, files, plugins, progress, parsing, processes."""

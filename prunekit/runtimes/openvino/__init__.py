"""OpenVINO: files, and their times layer by layer."""

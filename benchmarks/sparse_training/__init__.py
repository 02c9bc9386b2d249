"""Sparse training: static, SET, RigL, GMP and IEE."""

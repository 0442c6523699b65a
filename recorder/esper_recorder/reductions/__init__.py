"""Reductions: tensors in, small packed tensors out, on the device that holds them and without a host sync.

Pure functions. Nothing here reads a value back to Python (`.item()`, `bool(tensor)`, boolean indexing), allocates by
content, or depends on which values came in.
"""

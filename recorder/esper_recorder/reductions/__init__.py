"""Reductions: tensors in, small packed tensors out, on the device that holds them and without a host sync.

Pure functions. Nothing here reads a value of a device back to Python (`.item()`, `bool(tensor)`, boolean indexing), or
allocates by content.
"""

"""Figures of recorded runs: frames in, a figure out. Nothing here opens a run."""

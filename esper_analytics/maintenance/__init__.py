"""Maintenance of recorded runs: finish what a crash left, merge small parts, check that a recording is complete."""

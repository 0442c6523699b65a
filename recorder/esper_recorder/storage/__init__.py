"""Runs on disk: folders, manifests, journals, parts, and the thread that writes them. Imports no torch."""

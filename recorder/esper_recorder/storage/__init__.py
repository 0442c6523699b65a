"""Runs on disk: folders, manifests, journals, parts and the thread that writes them. Never torch."""

"""SQL: one question per file. Read with importlib.resources, never imported."""

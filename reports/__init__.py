"""Templates and plot style of the report. Read with importlib.resources, never imported."""

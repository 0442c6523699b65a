"""The runs under RUNS, their files, and their rows as tables. Nothing here runs a query."""

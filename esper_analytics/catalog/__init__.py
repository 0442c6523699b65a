"""Which runs and files there are, and their rows as tables: nothing here runs a query."""

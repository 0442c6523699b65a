"""Templates and styles of the report, read as resources."""

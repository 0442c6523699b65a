"""SQL over the views of runs: confined SELECTs, named queries, results as frames."""

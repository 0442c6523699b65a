"""SQL over the views of runs: one SELECT, confined; named queries; results as frames."""

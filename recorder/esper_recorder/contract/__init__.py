"""What the recorder and the analysis agree on: tables, metrics, signals and rules. Plain Python, no dependency."""

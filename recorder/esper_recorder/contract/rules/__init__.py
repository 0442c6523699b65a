"""Rules as data: what they read, how they are parsed, and the row by row evaluator."""

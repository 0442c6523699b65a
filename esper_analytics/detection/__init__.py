"""Rules over recorded runs: what fires, the incidents it makes, what had no data, and what a change changes."""

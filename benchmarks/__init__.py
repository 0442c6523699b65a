"""What the figures in the documentation come from. Each script writes its result into results/."""

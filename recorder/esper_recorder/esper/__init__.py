"""What only Esper's trainer has: its events, and how they become rows of the tables."""

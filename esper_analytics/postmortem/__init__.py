"""What a report says, as data, and the pages made of it."""

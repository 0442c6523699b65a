"""What an open update holds until it is rows: minibatches, layers, and how they come from the device."""

"""What is timed against each other: the same network, images, mini-batch and optimizer, each in its own way."""

"""What a network learns from images: the loss of its output, what is right about it, and a picture of it."""

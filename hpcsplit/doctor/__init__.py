"""What this place has for a run: each room of the answer in a file, each answer a `Finding`."""

"""The folder of a run: its paths, the lock that keeps a second run out, whose it is, and who made what is in it."""

"""The folder of a run: its paths, the lock that keeps a second run out, whose it is, who made what is in it, and the
watchdog that ends a run that hangs."""

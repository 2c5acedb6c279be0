"""What is timed against each other: the same network, images, mini-batch and optimizer, each in its own way."""

from hpcsplit.host.memory import keep_freed_memory

keep_freed_memory()  # before a peer imports torch

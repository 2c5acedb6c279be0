"""What is known before a run: blocks, times, cuts, memory, whether it fits, how fast it will be."""

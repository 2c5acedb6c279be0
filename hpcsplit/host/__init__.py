"""This process and its machine: launcher, terminal, memory, devices, stopping."""

"""A run on a machine that need not be there: the real stage programs, with clocks in place of arithmetic and wires."""

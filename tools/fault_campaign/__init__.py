"""tools/faults: seeded random faults in small runs; each must end in time and be continued to the same weights."""

"""tools/faults and tools/soak: small runs that are struck, refused, killed and stopped; each must end in time and be
continued to the weights of one that nobody disturbed."""

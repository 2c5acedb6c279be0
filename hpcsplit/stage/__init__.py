"""A stage: consecutive blocks of the network with their optimizer, where they are cut, who computes when."""

"""The rows of auxiliary variables of a stage, on disk or in memory, in two generations."""

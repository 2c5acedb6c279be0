"""The soak: a small run trained, killed and resumed for as long as one likes, and what grows meanwhile."""

"""tools/mutate: the code is changed in one place at a time, and the tests that pass through that place must fail."""

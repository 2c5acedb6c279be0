"""Networks: each is an nn.Sequential of named blocks, and a cut into stages falls between two blocks.

A block takes one tensor, returns one tensor, and never changes its input: at a cut, that input is a stored variable.
Every network can be built under `with torch.device("meta")`, without memory for its weights.
"""

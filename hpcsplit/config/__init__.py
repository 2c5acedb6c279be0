"""Configuration: typed sections, the reader, and the checks that need nothing but the file."""

from hpcsplit.config.load import Config, Method, differences, load, option_tree, resolve

__all__ = ["Config", "Method", "differences", "load", "option_tree", "resolve"]

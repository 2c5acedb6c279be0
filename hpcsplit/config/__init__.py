"""Configuration: typed sections, the reader, and the checks that need nothing but the file."""

from hpcsplit.config.load import Config, Method, load, option_tree, resolve

__all__ = ["Config", "Method", "load", "option_tree", "resolve"]

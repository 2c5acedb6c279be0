"""Configuration: typed sections, the reader, and the checks that need nothing but the file."""

from hpcsplit.config.config import Config, MethodSection, differences, option_tree
from hpcsplit.config.load import load, resolve

__all__ = ["Config", "MethodSection", "differences", "load", "option_tree", "resolve"]

"""Paths as people write them, with ~ and $VARIABLES where the shell has left them alone, as behind "="."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hpcsplit.errors import ConfigError, HpcsplitError

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|(\w*))")


def expanded(text: str, where: str, refusal: type[HpcsplitError] = ConfigError) -> Path:
    """The path that is meant by `text`, itself where something has that name; `where` says where it stands.

    Raises `refusal` where a variable is not set or empty, there is no such user, or the text can be no path.
    """

    def value(result: re.Match[str]) -> str:
        name = result[1] or result[2] or ""
        if not os.environ.get(name):
            raise refusal(f'{where} "{text}": {result[0]} is not set here; set it, or write the folder out')
        return os.environ[name]

    if "\0" in text:
        raise refusal(f"{where} {text!r} can be no path; give another one")
    path = os.path.expanduser(text if os.path.lexists(text) else _VARIABLE.sub(value, text))
    if path.startswith("~"):
        raise refusal(
            f'{where} "{text}": {path.split("/")[0]} is nobody\'s home folder here; write it out, or ./{path}'
        )
    return Path(path)

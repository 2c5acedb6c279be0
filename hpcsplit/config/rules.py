"""Where a value of an option is refused: conditions on other keys, beside the option where it is declared.

Method files are read, not run (declared.py), so a condition is text: Python's comparisons, `and`, `or` and `not`, of
literals and of keys ("optim.momentum", "method.grow"), what the decorator says ("facts.augments"), and `max` and
`increasing` of a list.  It matters where the option has another value than its default.  The sentence of the error may
name keys in braces.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hpcsplit.config.config import Config, option_tree
from hpcsplit.config.declared import DeclaredMethod
from hpcsplit.errors import ConfigError

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "max": max,
    "increasing": lambda values: all(a < b for a, b in pairwise(values)),
}


def check_rules(config: Config, method: DeclaredMethod) -> None:
    """Raise ConfigError for the first option of any section whose value is refused."""
    tree = config.as_dict()
    scope = {**{name: SimpleNamespace(**keys) for name, keys in tree.items()}, "facts": method}
    for section, options in option_tree(method.name).items():
        for key, option in options.items():
            default = list(option.default) if isinstance(option.default, tuple) else option.default
            for condition, sentence in option.refused_if.items() if tree[section][key] != default else ():
                if _value(ast.parse(condition, mode="eval").body, scope):
                    raise ConfigError(sentence.format(**scope))


def _value(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And()):
            return all(_value(part, scope) for part in node.values)
        case ast.BoolOp():
            return any(_value(part, scope) for part in node.values)
        case ast.UnaryOp(op=ast.Not()):
            return not _value(node.operand, scope)
        case ast.Compare():
            terms = pairwise(_value(term, scope) for term in (node.left, *node.comparators))
            return all(_COMPARISONS[type(op)](*pair) for op, pair in zip(node.ops, terms, strict=True))
        case ast.Attribute(value=ast.Name(id=section), attr=key):
            return getattr(scope[section], key)
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _FUNCTIONS[name](_value(argument, scope))
    return ast.literal_eval(node)

"""Rules: how each operation of a graph runs forward and hands relevance back.

One file per family of operations; ``registry`` is the table from operations to rules.
"""

from rapkernels.rules.base import Context, NoRuleError, Role, Rule, Site
from rapkernels.rules.registry import register_rule, rule_class, table_version, unregister_rule

__all__ = [
    "Context",
    "NoRuleError",
    "Role",
    "Rule",
    "Site",
    "register_rule",
    "rule_class",
    "table_version",
    "unregister_rule",
]

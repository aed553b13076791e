"""Constant folding: contents of values that do not depend on the input, sizes among them.

Owns the table of what is folded, its rules in families, and the limits. Read ``fold.py`` first.
"""

"""What each op makes of values that are known without the input.

Owns the table CONSTANT_RULES and its rules in families; the files of ``channels/`` have the same names for the same
families. Read ``table.py`` first, and ``call.py`` for what a rule gets.
"""

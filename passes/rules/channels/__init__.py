"""What each op does with channel ids: moves, unifies, contracts or refuses them.

Owns the table CHANNEL_RULES and its rules in families; the files of ``constants/`` have the same names for the same
families. Read ``table.py`` first.
"""

"""What each op makes of values that are known without the input.

Owns the table CONSTANT_RULES and its rules in families; the files of ``channels/`` have the same names for the same
families. A BatchNorm whose gamma is 0 leaves its beta (``normalisations.py``), and a ReLU that never fires makes zero
of one that is negative (``elementwise.py``). Read ``table.py`` first, and ``call.py`` for what a rule gets.
"""

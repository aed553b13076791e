"""Combinations: channels that go are made up for by those that stay.

Owns the algebra of that and the order of removal, in numbers that are handed in; the data, and the fit to them, are
prunec.fitting's. Read ``combinations.py`` first.
"""

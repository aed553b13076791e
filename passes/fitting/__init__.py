"""Combinations: the channels that stay are refitted to replace those that go.

Owns the algebra and the order of removal, on arrays that the caller passes in; collecting the data and fitting the
weights is prunec.fitting's. Read ``combinations.py`` first.
"""

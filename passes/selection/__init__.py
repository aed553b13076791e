"""Facts and wishes -> Selection: which channels stay, and what becomes of the constants of those that go.

Owns budgets, scores, legality, and the choice of carriers. Read ``select.py`` first.
"""

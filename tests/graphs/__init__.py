"""Graphs for the tests of single rules and passes, written by hand, and what the tests ask about them.

Start with tiny.py: ``Tiny`` is the builder.
"""

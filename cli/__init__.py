"""The command line.

Owns options and how results are shown. Commands parse, call prunec.api and render: no logic is here. Read
``main.py`` first.
"""

"""Rules: what each canonical op does, a table per pass.

Owns one small function per op and pass, in literal tables. A rule knows no framework and no other op. Read
``channels/table.py`` first: its rows are what prunec understands.
"""

"""Rules: what each canonical op does, a table per pass.

Owns one small function per op and pass, in literal tables. A rule knows no framework and no other op. Read the
table at the end of ``channels.py`` first.
"""

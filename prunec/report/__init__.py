"""What people read: results as plain data, and the pages made of them.

Owns numbers and HTML, no terminal. ``findings.py`` has the types; ``analysis.py`` fills them in from the passes.
"""

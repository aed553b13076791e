"""Two models, the same inputs: how far apart they are, and whose fault a failure is.

Owns comparison and verdict. Sessions are prunec.runtime's. Read ``validate.py`` first.
"""

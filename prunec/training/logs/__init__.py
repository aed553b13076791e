"""The output of a run while it goes on: metrics, progress, pictures, curves.

Owns the log; pages are prunec.report's.
"""

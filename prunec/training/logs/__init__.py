"""What a run says while it goes on: metrics, progress, pictures, curves.

Owns the log, not what is done with it; pages are prunec.report's.
"""

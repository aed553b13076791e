"""What layers cost on this machine, measured.

Owns how one layer is timed alone, at the widths that matter. Whole networks are timed in prunec.runtime.
"""

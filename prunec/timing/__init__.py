"""How long layers and networks take on this machine, measured.

Owns timing single layers at several widths, and models against each other. Sessions are prunec.runtime's.
"""

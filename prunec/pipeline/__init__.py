"""The stages joined: read, plan, lower and apply, for modules and for files.

Owns the order of the passes and the loop around a backend that cannot rewrite a node. prunec.api calls it.
Read ``planning.py`` first.
"""

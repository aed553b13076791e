"""Passes: Graph in; channel classes, constants, liveness, reads and cost out.

Owns the analyses, one file each, with one public function. What is done with them is ``selection/``'s; what an op
means to each of them is in ``rules/``. Installed as prunec.passes. Read ``channels.py`` first.
"""

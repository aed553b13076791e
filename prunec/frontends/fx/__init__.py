"""nn.Module -> Graph: a symbolic trace, its aten ops recorded node by node on the meta device.

Owns the table of aten ops (``aten.py``) and every rewrite of a forward that a trace needs. It decides nothing about
channels. Read ``frontend.py`` first, then ``trace.py``.
"""

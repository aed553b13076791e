"""nn.Module -> Graph: a symbolic trace, its aten ops recorded node by node on the meta device.

Owns recording, and the way back from the Graph to the module. It decides nothing about channels. Read ``frontend.py``
first, then ``recorder.py``.
"""

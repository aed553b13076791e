"""nn.Module -> fx.GraphModule: torch.fx first, torch.export where that fails.

Owns both tracers and every rewrite of a forward that they need: writes in place, modes, sizes, attention. What the
nodes mean is recorded by the room above. Read ``symbolic.py`` first, then ``export.py``.
"""

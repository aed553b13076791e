"""GraphModules without Python code.

torch.fx writes a graph's code, and compiles it, whenever the graph is put into a module. Between a trace and the pruned
network graphs are only read, copied and run node by node. Owns how such a module is made.
Read next: tracing/symbolic.py.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn


def unwritten(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """Return ``fx.GraphModule(root, graph, name)``, whose code is written when it is called for the first time."""
    made = fx.GraphModule.__new__(fx.GraphModule)
    vars(made)["recompile"] = lambda: None  # in front of the method, which the constructor calls
    fx.GraphModule.__init__(made, root, graph, name)
    del vars(made)["recompile"]
    type(made).forward = _first  # the class of this one module: torch.fx makes one for each
    return made


def _first(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
    module.recompile()  # it puts the forward that it writes in the place of this one
    return module.forward(*args, **kwargs)

"""Which layers can I prune without touching the head? A question to the dependency graph, answered with networkx.

Run it with `python examples/toolchains/which_layers.py`. A layer is free of the head where none of the channels that it
makes is one that the head reads: through sums and concats channels of layers far apart live or die together.
"""

from __future__ import annotations

import digits
import networkx as nx

import prunec

LAYERS = ("conv", "conv_transpose", "matmul")


def main() -> None:
    """Print each layer, whether it touches the head, and which layers it is tied to."""
    data = digits.trained()
    graph = prunec.dependency_graph(data.network, example_inputs=data.example)
    layers = [name for name, op in graph.nodes(data="op") if op in LAYERS]
    head = layers[-1]
    read_by_head = set(graph.nodes[head]["reads"])
    for name in layers:
        makes, pinned = set(graph.nodes[name]["makes"]), graph.nodes[name]["pinned"]
        tied = [other for other in layers if other != name and makes & set(graph.nodes[other]["makes"])]
        if pinned == len(makes):
            answer = "no: its channels are outputs of the network, or held by something that prunec cannot change"
        elif makes & read_by_head:
            answer = "it touches the head, which reads its channels"
        else:
            answer = f"yes, {len(makes) - pinned} channels{', together with ' + ', '.join(tied) if tied else ''}"
        print(f"{name}: {answer}")
    print(
        f"between the first layer and the head lie {len(nx.shortest_path(graph, layers[0], head)) - 2} nodes at least"
    )


if __name__ == "__main__":
    main()

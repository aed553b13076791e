"""What travels between the stages: the graph, its ops, channel labels, plans and edits.

Owns data types and no decision: no framework, no file, no pass. ``graph.py`` comes first, then ``labels.py``.
"""

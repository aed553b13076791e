"""Graph -> Graph: detours made simple before the analysis, and rewrites that free channels.

Owns changes of a graph that keep its function; what is removed afterwards is selection's.
"""

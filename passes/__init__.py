"""Passes: Graph in; channel classes, constants, liveness, cost and a PrunePlan out. Installed as prunec.passes."""

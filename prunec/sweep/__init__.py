"""How far a network can go: several sizes from one look at the data, and what each coupled group costs.

Owns ``prunec sweep``: the steps (sweep.py), what single groups cost (sensitivity.py), results as data (findings.py) and
the page made of them (page.py). Read sweep.py first.
"""

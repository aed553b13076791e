"""Running somebody's network while it is read: on its arguments, on shapes, leaving it as it was.

Owns the arguments' structure, tensors without values, and the promise that a network is put back after each run. Read
``untouched.py`` first.
"""

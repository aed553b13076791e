"""Everything decided before the first step: options, presets, model and data, automatic values.

Owns RunConfig and how it becomes a Setup. Read ``config.py`` first, then ``setup.py``.
"""

"""The table of aten ops -> canonical ops, and its rows in families.

Owns what each aten op means; how calls are recorded is in ``frontends/fx/recorder.py``. Read ``table.py`` first: it is
what prunec understands of a module.
"""

"""The table of ONNX op types -> canonical ops, and its rows in families.

Owns what each op type means; sizes and folding are the room's above. Read ``table.py`` first: it is what prunec
understands.
"""

"""The table of ONNX op types -> canonical ops, and its rows in families.

Owns what each op type means; sizes and folding are rooms of their own. Read ``table.py`` first: it is what prunec
understands.
"""

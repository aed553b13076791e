"""What is known of a node: its attributes, the sizes and types of its values, sizes that stay open as symbols.

Owns ONNX's shape inference and what takes it further. Knows no canonical op. Read ``view.py`` first: it is what every
row of the tables gets.
"""

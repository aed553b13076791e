"""What MODEL means: a file, a built-in architecture, a network of torchvision or timm, or your own factory.

Owns that and the messages where nothing fits. The architectures themselves are in prunec.models. Read ``resolve.py``
first.
"""

"""What samples show: a user's inputs, read batch by batch, and what activations did on them.

Owns reading, calibration, observing and saliency. Image sets for training are prunec.training.data's. Read
``samples.py`` first.
"""

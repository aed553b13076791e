"""A user's inputs, read batch by batch, and the activations that they cause.

Owns reading (``sample_files.py``: a folder of arrays or images), calibration (channels that are constant on data, such
as those of a ReLU that never fires there), observing and saliency. Image sets for training, ``--data``, are
prunec.training.data's. Read ``samples.py`` first.
"""

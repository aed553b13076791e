"""What samples show: a user's inputs, read batch by batch, and what activations did on them.

Owns reading (``sample_files.py``: a folder of arrays or images), calibration (channels that are constant on data, such
as those of a ReLU that never fires there), observing and saliency. Image sets for training, ``--data``, are
prunec.training.data's. Read ``samples.py`` first.
"""

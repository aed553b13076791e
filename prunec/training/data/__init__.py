"""Images to train and test on: where they come from, how batches are made and varied.

Owns ``--data`` (``imagefiles.py``: a folder of images per class) and ``--augment``. Samples for calibration are
prunec.data's. Read ``sets.py`` first.
"""

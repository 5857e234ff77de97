"""Synthetic masks: the picture that the mask model paints, its decoding, and the layouts that control it."""

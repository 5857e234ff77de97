"""Masks from nothing: the picture that the mask model paints, its decoding, and the layouts that steer it."""

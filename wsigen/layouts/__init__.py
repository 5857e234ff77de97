"""Layouts, which say how dense nuclei lie in each region of a synthetic mask, and the picture that is decoded to it."""

"""Slide masks: which nucleus lies where, and the condition planes that the denoiser is given for a window.

A mask is a TIFF as large as the slide. `slide_mask` reads it window by window and writes it, `conditions` turns a
window into condition planes, `demo` draws a synthetic mask of colon mucosa. Nothing here imports torch.
"""

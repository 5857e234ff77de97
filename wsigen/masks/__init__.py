"""Slide masks: the place and class of every nucleus, and the condition planes of a window for the denoiser.

A mask is a TIFF as large as the slide. `slide_mask` reads it window by window and writes it, `conditions` turns a
window into condition planes, `demo` draws a synthetic mask of colon mucosa, `importers` and `exporters` read and write
the nuclei of other tools. Nothing here imports torch.
"""

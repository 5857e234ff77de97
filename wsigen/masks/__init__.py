"""Slide masks: the place and class of every nucleus, and the condition planes of a window for the denoiser.

A mask is a TIFF as large as the slide. `source` is a mask that can be read window by window, `slide_mask` reads a file,
`resampling` shows a mask at another scale, and `writer` writes one. `conditions` reads what the conditions of a window
follow from, `demo` draws an invented mask of colon mucosa, `importers` and `exporters` read and write the nuclei of
other tools. Nothing here imports torch.
"""

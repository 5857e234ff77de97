"""A synthetic mask of normal colon mucosa, drawn from a seed: something to paint without data of anyone.

A slide is a grid of fragments, each a piece of the bowel wall: glass, a luminal surface of columnar epithelium, crypts
(along one stretch cut lengthwise, as test tubes that open to the surface, along the next cut across, as rings), lamina
propria between them, muscularis mucosae, and submucosa with vessels. Anatomy is placed in microns: regions as polygons,
nuclei by rules for each region. A fragment is drawn whole and fragments do not touch, so memory grows with the width of
the slide, not with its area.

`mask` cuts the slide into fragments and writes it; `wall` draws the layers, `crypts` and `stroma` what lies in them;
`drawing` holds the pixels, `geometry` the curves and shapes.

Sizes: crypts 70 to 100 µm across; nuclei as large as those that pathologists outlined in Lizard (Graham et al. 2021;
median half-axes lymphocyte 2.4 x 1.8 µm, plasma cell 2.6 x 2.0, epithelium 3.8 x 2.4, eosinophil 3.2 x 2.3, neutrophil
2.9 x 2.1, connective 3.4 x 1.8), which is less than textbooks give for tissue that was not shrunk by embedding.
"""

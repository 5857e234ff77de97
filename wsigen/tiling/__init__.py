"""Painting a slide window by window: the grid, the canvas store, the painter of one batch, and the engine."""

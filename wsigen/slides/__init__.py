"""Slides: the pyramid writer, what a slide says about itself, and the small preview. Never imports torch."""

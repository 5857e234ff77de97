"""The number of the pixels that this code paints.

It is raised whenever a change of the code changes painted pixels, by however little: by one, in the same commit. Runs
record it, so that a render of one number is not continued, repeated or verified by code of another. The version of the
package says nothing about pixels: a version may change without them. The golden canvases of the tests hold the number
that they were painted with; ``python tests/rendering/golden_canvases.py`` paints them anew once it was raised.
"""

PIXELS = 2

"""Look at slides and masks in a browser, and paint a mask's slide while looking at it."""

"""Training: preparing labelled images, sampling patches on the device, and the loop behind ``wsigen train``."""

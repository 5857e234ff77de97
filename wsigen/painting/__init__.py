"""From windows to the canvas: sources, batches, tasks, workers."""

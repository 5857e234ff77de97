"""From windows to the canvas: batches, tasks, workers."""

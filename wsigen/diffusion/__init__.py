"""The diffusion process: noise schedules, forward process and losses, samplers, guidance, coordinate-keyed noise.

Nothing here knows of masks, windows or networks: a network's output comes in as a tensor, a data prediction goes out.
"""

"""The denoiser and what belongs to it: U-Net, conditioning, stain style, checkpoints and the registry of models."""

"""What a denoiser is told: one file for each condition, from a user's setting to tensors and to training."""

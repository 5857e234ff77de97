"""What a denoiser is given beside the noisy image: a file for each condition, from its setting to training."""

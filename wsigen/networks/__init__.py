"""Networks: the contract of a denoiser, the one that ships, the denoising loop, and networks that measure pictures."""

"""Networks that measure pictures; the denoiser is in `wsigen.models`."""

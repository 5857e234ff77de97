"""How good models and slides are: distances, mask fidelity, seams, stain, memorisation, and the reports of them."""

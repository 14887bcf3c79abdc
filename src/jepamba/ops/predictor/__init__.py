"""The latent predictor's operations besides its matrix products."""

"""Variational autoencoders that explain themselves: attention maps for every latent, in JAX."""

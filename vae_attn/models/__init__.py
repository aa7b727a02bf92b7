"""Flax modules: encoders, decoders, the VAE."""

"""Runs on ground-truth factors: what each latent means."""

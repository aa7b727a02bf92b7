"""From config and data to a trained state."""

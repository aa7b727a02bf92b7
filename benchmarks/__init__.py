"""Speed and memory beside plain PyTorch, measured in one run."""

"""What knows tensors and checkpoints. Torch is imported here, in backends, verifiers, rl and training only."""

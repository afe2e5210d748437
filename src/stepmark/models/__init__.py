"""Checkpoints, encoding, batches and scoring. Only this package, backends, verifiers, rl and training import torch."""

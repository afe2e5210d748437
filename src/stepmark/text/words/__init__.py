"""The parts that the synthetic word tasks share: lists of words, and comparisons written as text."""

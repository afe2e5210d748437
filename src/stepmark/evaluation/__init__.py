"""Figures from records: rankings, accuracies with intervals, the evidence of labels, accuracy against tokens."""

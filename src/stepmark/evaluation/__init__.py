"""Records in, numbers out: rankings, accuracies with intervals, label evidence, cost curves. No torch."""

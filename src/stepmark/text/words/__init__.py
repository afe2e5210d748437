"""What the made-up word tasks share: their words, and comparisons written out in words."""

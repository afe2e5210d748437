"""Stepmark: turn a task with checkable answers and any language model into a verifier of reasoning steps."""

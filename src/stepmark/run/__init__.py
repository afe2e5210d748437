"""A whole run: its recipe, the order of its stages, and its directory. The package stages knows none of them."""

"""A whole run: the recipe, the order of its stages, and its directory. The only place that knows either."""

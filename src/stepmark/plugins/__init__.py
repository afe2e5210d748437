"""A name, or the path of your own file, becomes an object."""

"""Loads plug-ins: by name, or from the path of a user's own file."""

"""The stages: each module has one plain function that takes plug-ins and records. They do not import one another."""

"""One verb a file: plain functions that take plug-ins and records. They never import one another."""

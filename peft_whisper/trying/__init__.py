"""A base and what was trained on it, tried by voice on a local page."""

"""A base and what was trained on it, tried by voice on a local page."""

HOST = "127.0.0.1"  # and no other

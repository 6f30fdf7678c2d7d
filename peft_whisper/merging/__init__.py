"""Adapters folded into their base: one or several, at any strength."""

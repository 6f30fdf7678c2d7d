"""The last room: decoded text becomes counts, counts become scores, scores become a page."""

"""Models written for other programs, and decoded there before they are kept."""

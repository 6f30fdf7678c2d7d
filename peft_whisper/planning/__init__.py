"""What a recipe takes of a card: traced, searched, remembered."""

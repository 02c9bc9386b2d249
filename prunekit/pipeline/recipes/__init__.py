"""Recipes: every setting of a command, typed, checked, and saved with the result."""

"""Prompts used where they were not learned, and what predicts that."""

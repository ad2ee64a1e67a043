"""Studies: which runs there are, who runs them, and what they found."""

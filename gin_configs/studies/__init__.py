"""Gin files; a package, so that gin finds them installed."""

"""Builders, media and oracles that several test files share."""

"""Beam makes the sdist for its workers of this file; everything is in pyproject.toml."""

from setuptools import setup

setup()

"""Modules that compressed models are built from."""

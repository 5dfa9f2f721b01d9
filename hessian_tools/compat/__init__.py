"""Interfaces of other libraries over this engine."""

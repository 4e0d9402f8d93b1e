"""Objectives on codes."""

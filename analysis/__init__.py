"""Turns what the core measured into measures, tables and figures. Knows no app."""

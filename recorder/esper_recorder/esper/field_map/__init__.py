"""Esper's events as rows of the tables: the mapping as data, and what applies it."""

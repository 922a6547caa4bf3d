"""Scores of cases, and statistics over them."""

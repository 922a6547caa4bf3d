"""What one looks at after inference: volumes in a table, what should be checked, pages with pictures."""

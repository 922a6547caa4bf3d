"""Tests of what one looks at after inference."""

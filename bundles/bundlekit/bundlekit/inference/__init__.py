"""From a case to its classes."""

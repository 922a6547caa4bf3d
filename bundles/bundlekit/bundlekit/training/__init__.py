"""Handlers of a training run."""

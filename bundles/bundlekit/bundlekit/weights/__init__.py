"""Trained weights: loaded strictly, with what they were trained with."""

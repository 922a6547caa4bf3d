"""A data set: which cases it has, whether they are sound, who trains."""

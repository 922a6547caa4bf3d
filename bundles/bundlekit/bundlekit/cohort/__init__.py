"""Many cases on many processes or machines, by Dask."""

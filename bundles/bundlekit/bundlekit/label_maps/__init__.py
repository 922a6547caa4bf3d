"""FreeSurfer's label maps and other numberings of tissues."""

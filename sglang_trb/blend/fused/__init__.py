"""The whole step of a row as one Triton program: compiled on a CUDA device, interpreted where there is none."""

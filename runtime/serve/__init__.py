"""`mate-edge serve`: bundles behind HTTP, as the Open Inference Protocol v2 says."""

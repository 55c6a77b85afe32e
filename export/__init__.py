"""From a run to a bundle: what each exit costs, and one ONNX file for each segment."""

"""Training, import, ANN-to-SNN conversion, ONNX export and their commands."""

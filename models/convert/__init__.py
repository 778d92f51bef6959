"""Turns networks of other frameworks into ONNX with numpy and onnx alone: read (tensorflow_js, tflite) -> translate -> release."""

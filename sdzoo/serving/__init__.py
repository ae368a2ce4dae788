"""Serving ONNX files over HTTP: the Open Inference Protocol, pictures, and a page to try it on."""

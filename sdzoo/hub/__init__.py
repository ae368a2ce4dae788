"""The Hugging Face Hub: publish a training, load it anywhere, and never run wrong weights."""

"""The pretrained Whisper, what is trained of it, and its forward pass."""

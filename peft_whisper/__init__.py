"""Fine-tune Whisper on your own speech, on the one card you have."""

__version__ = "0.1.0"

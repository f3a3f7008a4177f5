"""What the feature is: pixels, encoders, tokens (docs/method.md 3)."""

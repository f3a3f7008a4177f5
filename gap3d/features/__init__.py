"""What the feature is: pixels, encoders, tokens (specification 3)."""

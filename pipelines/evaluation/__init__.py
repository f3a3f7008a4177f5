"""What the evaluation's programs share: objects and token sets that are measured, where they come from, pictures."""

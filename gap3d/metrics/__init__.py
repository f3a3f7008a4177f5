"""What tells how good tokens are: measures of predicted against true ones, for any model."""

"""Tables that only a graphics card can fill: full-size models with random weights, one command for each table."""

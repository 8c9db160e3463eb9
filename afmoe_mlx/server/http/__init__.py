"""From a socket to an `Endpoint` and back: who may ask, how much, for how long, and what is told of it."""

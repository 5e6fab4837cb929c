"""mesascope: find out which learning algorithm a sequence model runs inside its forward pass."""

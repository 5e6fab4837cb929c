"""Parts of experiments: trainings that belong together, the claims about them, and their measurement."""

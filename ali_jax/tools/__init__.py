"""What can be done with a config or a trained run besides training and evaluating it."""

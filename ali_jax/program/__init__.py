"""The program: its command line, the training loop, several processes."""

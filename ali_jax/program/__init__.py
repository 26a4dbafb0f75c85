"""The program: its command line, its training loop, and how several processes train together."""

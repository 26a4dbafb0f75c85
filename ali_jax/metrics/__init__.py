"""What is measured: pure functions of arrays, knowing neither networks nor configuration."""

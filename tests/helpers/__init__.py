"""Code that several test files share: problems and recordings, runs, and the programs that tests start."""

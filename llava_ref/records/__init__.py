"""Records of runs: what a run needs to be repeated, and the hash of every array that it computed."""

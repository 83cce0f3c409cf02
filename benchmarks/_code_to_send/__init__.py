"""Functions that use packages which the far end lacks, each in a module of its own, so that it brings no other."""

"""What trickle costs, against floors and peers that are measured in the same run.  See README.md."""

"""What both ends of a pipe say to each other: frames, states and credits.  Sans-IO, standard library only."""

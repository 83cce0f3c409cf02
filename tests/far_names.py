"""A module that names its hosts at its top level, and has functions that are called over there."""

import trickle

NAMES = trickle.hosts("web[01-02],db")
TUNNELS = [trickle.Local(name) for name in NAMES]


def names():
    return NAMES, len(TUNNELS)

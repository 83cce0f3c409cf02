"""A module that sets something up elsewhere when it is imported, and makes functions that rely on it."""

import string

string.was_set_up = True


def make_look():
    return lambda: getattr(string, "was_set_up", False)

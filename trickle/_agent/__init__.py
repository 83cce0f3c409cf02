"""The far end: what runs on a host.  Standard library only, Python 3.6 and later; sent over the pipe."""

"""One file per format; each takes a finished `Report`."""

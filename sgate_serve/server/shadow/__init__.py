"""Runs a share of the requests on a second model too, to tell how far the two agree."""

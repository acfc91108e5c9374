"""Holds the page that `server.routes.page` shows."""

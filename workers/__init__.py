"""Distributed executors live here; the library finds them by entry point and never imports them."""

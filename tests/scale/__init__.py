"""A thousand workspaces at once, in real time: ``python -m tests.scale --count 1000``."""

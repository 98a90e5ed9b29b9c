"""A kit that passes or fails any backend of the ``CloudProvider`` protocol."""

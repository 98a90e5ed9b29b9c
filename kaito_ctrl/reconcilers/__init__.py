"""KAITO's controllers: each a pure plan and a thin shell that reads the cache, calls the plan, and carries it out."""

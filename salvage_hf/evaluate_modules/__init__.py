"""What the `evaluate` modules in metrics/ share, how they are loaded by name, and the apps of their Spaces."""

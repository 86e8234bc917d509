"""What keeps a wrong map from being made in silence: checks of input, torch's modes, changes between two calls."""

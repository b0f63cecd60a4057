"""Checks of the contracts that others may implement: importable anywhere, and no pytest is needed to run them."""

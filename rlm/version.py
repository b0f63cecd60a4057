"""The version of this package, which logs carry too."""

__version__ = "0.1.0.dev0"

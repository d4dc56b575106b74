"""The one place that holds the version; the build backend and CMake read it from here."""

__version__ = "0.1.0"

"""The version of the package, from its installed metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rapkernels")
except PackageNotFoundError:
    __version__ = "0+unknown"

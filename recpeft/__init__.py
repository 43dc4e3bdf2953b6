"""The ground floor of recpeft: plug-in loading, the base of all configs, the error users see, files."""

__version__ = "0.1.0"

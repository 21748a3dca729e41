"""The version of the library, also for its own use: a checkout that is not installed has no metadata."""

VERSION = "0.2.0"

"""Labelled images: loading and checking them, translating their labels, and processing them for a classifier."""

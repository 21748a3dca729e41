"""Labelled images: read and checked, in the classifier's labels, and as its image processor makes them."""

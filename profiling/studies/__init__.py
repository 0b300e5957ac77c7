"""A study: points of a grid, what is measured of each, and the pictures of all."""

"""Sample kernels, each with deliberately broken variants, and how to run and judge them."""

"""`python -m swav_ray` is `swav-ray`."""

from swav_ray.cli import main

main()

"""What-if: the same examples under other options and packers, on counts alone: `plan --compare`."""

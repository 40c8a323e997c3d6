"""What-if: the same examples under other options and packers, on counts alone: `plan --compare`.

`settings` reads what is compared, `examples` what it is compared on; `engine` plans, by `cost` (a model of time), and `rows` says it.
`advice` asks it for a report.
"""

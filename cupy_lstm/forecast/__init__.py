"""The main job: an honest forecast of a time series, ``python -m cupy_lstm forecast``.

From below: `spacing` and `series` read a table, `evaluation` and `baselines` are the yardsticks,
`model` is what is trained, `experiment` is one run, `storage`, `report`, `picture` and `files`
write what it found, `options` and `command` talk with the user.
"""

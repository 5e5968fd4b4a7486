"""The verbs of the command line, one module for each family.

A module imports at its top only what `insitu --help` may cost; pydicom, the runtime and
the like are imported inside the verb that needs them.
"""

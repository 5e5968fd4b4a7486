"""The Standard: association, receive, send, decode, geometry, result objects.

Knows nothing of the appliance (`edge`) or of models (`model_store`). A pydicom
`Dataset` never leaves this package: frozen dataclasses do.
"""

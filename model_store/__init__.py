"""Signed models: package, publish, fetch, verify, store, activate.

Knows nothing of DICOM files or of the appliance (`edge`).
"""

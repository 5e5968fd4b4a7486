"""The pre- and postprocessing steps that a manifest composes by name and version.

Reading order: `table` (every step there is) → `sample` (what flows through them) →
`compiler` (a manifest's lists, checked) → preprocessing: `orientation`, `resampling`, `crop`,
`intensity`, `image` → postprocessing: `labels`, `quantities`. `reference` prints the document.
A step is a pure function, `step(sample, *, parameter…) -> Sample` before the model and
`step(reading, *, parameter…) -> Reading` after it: no IO, no state, its input is left as it
was. `docs/model-package.md` is the table for vendors.

A step that is in use never changes what it computes: a changed one gets a new version.
"""

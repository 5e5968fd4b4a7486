"""The version of the appliance's software; a test holds it to pyproject.toml."""

from typing import Final

VERSION: Final = "0.1.0"

"""The appliance: configuration, journal, the five stages, inference, command line."""

"""The notebooks: how they are run and written, and tests of what they show."""

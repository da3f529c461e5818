"""Tests of the pictures of results."""

"""Checks that the installed package computes what it should: against the official network, the oracle, true cameras."""

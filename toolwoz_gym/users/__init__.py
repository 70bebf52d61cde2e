"""Customers: scripted ones, and recorded ones that are replayed."""

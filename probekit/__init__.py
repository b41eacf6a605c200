"""Probekit."""

"""Runs that are killed at random, again and again, and the books that must balance afterwards."""

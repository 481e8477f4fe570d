"""The engine room: everything that the stages and the tests import."""

"""The table of techniques: every compression technique on one task, measured in one way."""

"""How long calls take and how much work they are, and on which machine that was measured."""

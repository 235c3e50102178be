"""The state of the screen, without Textual."""

"""One class per kernel setting: read, write, compare, restore."""

"""The kernel side: C sources, the header shim, the loader, and the reader of the maps."""

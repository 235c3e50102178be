"""Line-API widgets, one a file."""

"""From source to attached programs."""

"""What a file or a call asks for, read strictly: typed configurations, and classes by name."""

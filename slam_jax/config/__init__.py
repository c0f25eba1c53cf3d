"""Every option with its default and its checks, and the command line that changes them."""

"""What clients and servers say to each other, and by which rules: bytes in, messages out. No sockets."""

"""The messages between clients and servers, and the rules for them: bytes in, messages out. No sockets."""
